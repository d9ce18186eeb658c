"""Evaluation protocols: what they round, measure and refuse, and that they are in the metric id."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny

from fewstep.cli.commands.reference import reference
from fewstep.errors import UserError
from fewstep.experiments.config.protocols import ADM, PROTOCOLS, TORCH_FIDELITY, Protocol
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.data import DATA, ROUNDINGS, Dataset, to_model, to_uint8
from fewstep.experiments.evaluation import evaluate
from fewstep.experiments.evaluation.measurement import main_metric, metric_instances
from fewstep.experiments.evaluation.sampling import SampleBatch, SamplingConfig, draw
from fewstep.experiments.extractors import Features, Inception
from fewstep.experiments.run import directory_of
from fewstep.experiments.training.network import build_network
from fewstep.experiments.validation import check
from fewstep.registry import named

WEIGHTS = {"name": "inception", "weights": "weights.pth"}
FLAGS = ["evaluation.protocol=adm", ("evaluation.extractor", WEIGHTS)]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATA["digits"].load()


# ---------------------------------------------------------------------------------------- rounding


def rounded(level: np.ndarray, rounding: str) -> np.ndarray:
    """Pixels at these levels, from 0 to 255, as uint8."""
    x = torch.from_numpy(level / 127.5 - 1).float().view(1, 1, -1)
    return to_uint8(x, rounding).flatten().numpy()


def test_roundings_between_levels() -> None:
    k = np.arange(255)
    above = ("nearest", "half_up")
    for share, up in ((0.01, ()), (0.49, ()), (0.51, above), (0.99, above)):
        for rounding in ROUNDINGS:
            assert np.array_equal(rounded(k + share, rounding), k + (rounding in up)), rounding
    for rounding in ROUNDINGS:
        assert rounded(np.array([-40.0, 0, 255, 300]), rounding).tolist() == [0, 0, 255, 255]
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            to_uint8(torch.full((1, 2, 2), torch.nan), rounding)


def test_roundings_halfway_between_two_levels() -> None:
    x = ((torch.arange(255).double() + 0.5) / 127.5 - 1).float()
    exact = ((x + 1) * 127.5 % 1 == 0.5) & (x * 127.5 + 128 == (x * 127.5 + 128).floor())
    x, k = x[exact].view(1, 1, -1), torch.arange(255)[exact]  # the rest is off by float32
    assert len(k) > 40
    assert {0, 1} == set((k % 2).tolist())
    assert torch.equal(to_uint8(x, "nearest").flatten(), k + k % 2)  # the even one
    assert torch.equal(to_uint8(x, "half_up").flatten(), k + 1)
    assert torch.equal(to_uint8(x, "truncate").flatten(), k)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, -1)
    for rounding in ("nearest", "half_up"):
        assert torch.equal(to_uint8(to_model(levels), rounding), levels)


def test_samples_are_rounded_as_the_protocol_does(tmp_path: Path) -> None:
    def drawn(*more: Any) -> torch.Tensor:
        config = tiny(tmp_path, "objective=flow_matching", ("evaluation.extractor", WEIGHTS), *more)
        torch.manual_seed(0)
        dataset = config.data.load()
        network = build_network(config, dataset)
        return draw(config, dataset, network, SamplingConfig(1), 20, 20).x.int()

    own = drawn()
    assert torch.equal(drawn("evaluation.protocol=edm"), own)  # but at .5
    lower = own - drawn("evaluation.protocol=torch_fidelity")
    inside = (own > 0) & (own < 255)
    assert set(lower.unique().tolist()) == {0, 1}
    assert lower[inside].float().mean() == pytest.approx(0.5, abs=0.1)


# ---------------------------------------------------------------------------- what is contradictory


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"protocol": "admm"}, "unknown evaluation.protocol 'admm'; did you mean 'adm'?"),
        ({"samples": 1000}, "protocol=adm takes 50000 samples, got evaluation.samples=1000;"),
        ({"metrics": ["fd", "kid"]}, "protocol=adm has no evaluation.metrics 'kid' (choices: fd, "),
        (
            {"metrics": [{"name": "recall", "k": 5}]},
            "protocol=adm takes evaluation.metrics with k=3, got 5; leave out one of the two",
        ),
        (
            {"protocol": "dit", "metrics": [{"name": "inception_score", "order": 1}]},
            "protocol=dit takes evaluation.metrics with order=null, got 1",
        ),
        (
            {"extractor": "auto"},
            "got evaluation.extractor=auto; write evaluation.extractor={name: inception, weights:",
        ),
        ({"extractor": [WEIGHTS, "raw"]}, "needs the extractor inception, got evaluation.extr"),
        (
            {"extractor": {"name": "decoded", "autoencoder": "x", "extractor": "raw"}},
            "got evaluation.extractor.extractor=raw; write evaluation.extractor.extractor={",
        ),
        (
            {"extractor": {"name": "decoded", "rounding": "nearest"}},
            "takes evaluation.extractor with rounding=truncate, got 'nearest'",
        ),
        (
            {"protocol": "clean_fid", "extractor": {**WEIGHTS, "resize": "tf1"}},
            "protocol=clean_fid takes evaluation.extractor with resize=clean, got 'tf1'",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_contradicts_the_protocol_is_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as refused:
        Evaluation(**{"protocol": "adm", "extractor": WEIGHTS, **settings})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_agrees_with_the_protocol_may_be_given() -> None:
    recall = {"name": "recall", "k": 3}
    metrics = ["inception_score", recall, {"name": "fd"}]
    asked = Evaluation(protocol="adm", extractor=WEIGHTS, samples=50_000, metrics=metrics)
    requests = asked.metric_requests()
    assert [r.get("metric") for r in requests] == [
        {"name": "inception_score", "splits": 10, "order": None}, recall, None
    ]  # fmt: skip
    assert all(r["protocol"] == "adm" and r["samples"] == 50_000 for r in requests)
    assert all("protocol" not in r for r in Evaluation().metric_requests())


def test_weights_are_missed_before_any_training(tmp_path: Path) -> None:
    for weights, says in (("", "inception needs its weights: write"), ("absent.pth", "no file ")):
        extractor = ("evaluation.extractor", {"name": "inception", "weights": weights})
        config = tiny(tmp_path, "evaluation.protocol=adm", extractor)
        with pytest.raises(UserError, match=says) as missed:
            check([config])
        assert "\n" not in str(missed.value)
    for metric, says in (("sfid", "raw has no spatial"), ("inception_score", "raw has no logits")):
        with pytest.raises(UserError, match=says):
            check([tiny(tmp_path, ("evaluation.metrics", [metric]))])
    assert not list(tmp_path.rglob("*.json"))


# ------------------------------------------------------------------------------- what is measured


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An Inception of few numbers, without weights; the images of each of its passes."""
    seen: list[int] = []
    sizes = {"": 8, "logits": 5, "spatial": 6}
    g = np.random.default_rng(0)
    weights = {name: g.standard_normal((64, d)) / 20 for name, d in sizes.items()}

    def prepare(self: Inception, dataset: Dataset, cache: Path) -> Features:
        def layers(x: torch.Tensor, names: Any) -> dict[str, np.ndarray]:
            seen.append(len(x))
            flat = x.flatten(1).double().numpy() / 255
            return {name: flat @ weights[name] for name in names}

        def main(x: torch.Tensor) -> np.ndarray:
            return layers(x, [""])[""]

        return Features("inception", "0" * 64, main, self.resize, is_fid=True, layers=layers)

    monkeypatch.setattr(Inception, "prepare", prepare)
    monkeypatch.setattr(Inception, "check", lambda self, dataset: None)
    return seen


@pytest.mark.usefixtures("passes")
def test_the_protocol_is_part_of_id_and_label(digits: Dataset, tmp_path: Path) -> None:
    asked = Evaluation(extractor=WEIGHTS, samples=50_000, metrics=[{"name": "fd"}])
    identities = {
        name: main_metric(replace(asked, protocol=name), digits, tmp_path).identity
        for name in (None, *PROTOCOLS)
    }
    ids = {identity["id"] for identity in identities.values()}
    assert len(ids) == 1 + len(PROTOCOLS)
    assert identities[None]["label"] == "FID-digits@50000"
    assert "protocol" not in identities[None]
    assert identities[None]["rounding"] == "clip-round-uint8"
    for name in PROTOCOLS:
        assert identities[name]["label"] == f"FID-digits@50000-{name}"
    roundings = {name: identities[name]["rounding"] for name in PROTOCOLS}
    assert roundings["adm"] == roundings["torch_fidelity"] == "clip-truncate-uint8"
    assert roundings["dit"] == roundings["edm"] == roundings["clean_fid"] == "clip-half_up-uint8"
    assert identities["clean_fid"]["resize"] == "clean" != identities["adm"]["resize"]


@pytest.mark.usefixtures("passes")
def test_a_protocol_measures_what_the_file_has_references_for(
    digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = {"arr_0": digits.train.x[:90].permute(0, 2, 3, 1).numpy()}
    moments = {"mu": np.zeros(8), "sigma": np.eye(8)}
    spatial = {"mu_s": np.zeros(6), "sigma_s": np.eye(6)}
    everything = ["fd", "sfid", "inception_score", "precision", "recall"]
    file = tmp_path / "batch.npz"
    config = tiny(tmp_path, *FLAGS, ("evaluation.reference_file", str(file)))
    for arrays, missing in (
        ({**images, **moments, **spatial}, []),
        (images, []),
        ({**moments, **spatial}, ["precision", "recall"]),
        (moments, ["sfid", "precision", "recall"]),
    ):
        np.savez(file, **arrays)  # type: ignore[arg-type]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check([config, config])
        assert caplog.text.count("which are left out") == (1 if missing else 0)
        requests = config.evaluation.metric_requests()
        asked = [named("metric", request.get("metric", "fd"))["name"] for request in requests]
        assert asked == [name for name in everything if name not in missing]
        made = metric_instances(config.evaluation, digits, tmp_path / "cache")
        assert [m.samples for m in made] == [50_000] * len(asked)
        assert "evaluation.metrics" not in caplog.text
    with pytest.raises(UserError, match=r"holds neither images \(arr_0\) nor mu_s and sigma_s"):
        check([tiny(tmp_path, *FLAGS, ("evaluation.reference_file", str(file)),
                    ("evaluation.metrics", ["sfid"]))])  # fmt: skip


def test_reference_files_have_spatial_statistics(
    digits: Dataset, tmp_path: Path, passes: list[int]
) -> None:
    file = tmp_path / "digits.npz"
    asked = ["data=digits", "extractor=inception", f"output={file}"]
    reference(asked, runs=str(tmp_path))
    assert passes == [1200]
    distances = Evaluation(extractor=WEIGHTS, metrics=["fd", "sfid"], samples=300)
    values = [
        [m.of_samples(digits.test.x[:300]).value for m in metric_instances(one, digits, tmp_path)]
        for one in (distances, replace(distances, reference_file=str(file)))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_set_of_samples_passes_once_for_all_metrics(
    digits: Dataset, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # ADM's with torch-fidelity's Inception Score, for any number of samples
    of_both = {name: ADM[name] for name in ("fd", "inception_score", "precision", "recall")}
    monkeypatch.setitem(PROTOCOLS, "both", Protocol("truncate", {**of_both, **TORCH_FIDELITY}))
    asked = Evaluation(extractor=WEIGHTS, protocol="both", samples=70)
    config = tiny(tmp_path, "evaluation.samples=70")
    directory = directory_of(config)
    directory.path.mkdir(parents=True)
    made = metric_instances(asked, digits, tmp_path / "cache")
    lacking = {f"cell{i}": measure for i, measure in enumerate(made)}
    drawn = SampleBatch(digits.test.x[:70], None, 1)
    assert not evaluate._record(directory, drawn, {"cell": {}, "nfe": 1}, lacking)
    # samples, all references for their moments, held-out images, all references for their rows
    assert sorted(passes) == [70, 70, 1200, 1200]
    cells = directory.cells()
    names = ["FID", "IS", "precision", "recall"]
    assert [cells[cell]["metric"]["name"] for cell in lacking] == names
    assert cells["cell2"]["metric"]["reference_samples"] == 1200  # not as many as samples
    features = made[0].reference.features
    assert features.layers is not None
    logits = features.layers(drawn.x, ["logits"])["logits"]
    logits = logits[np.random.RandomState(2020).permutation(70)]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    parts = np.split(p, 10)
    scores = [np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()) for q in parts]
    assert cells["cell1"]["value"] == pytest.approx(np.mean(scores), rel=1e-12)
    assert cells["cell1"]["error"] == pytest.approx(np.std(scores, ddof=1) / np.sqrt(10), rel=1e-9)
