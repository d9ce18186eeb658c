"""The Inception Score and sFID against SciPy, on features and logits that are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch

from fewstep.errors import UserError
from fewstep.experiments.data import DATA, Dataset
from fewstep.experiments.evaluation.measurement import MetricInstance
from fewstep.experiments.extractors import Features
from fewstep.experiments.metrics import METRICS, SFD, InceptionScore
from fewstep.experiments.metrics.reference import Reference


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATA["digits"].load()


def by_scipy(logits: np.ndarray, parts: int) -> list[float]:
    p = scipy.special.softmax(logits, axis=1)
    size = len(p) // parts
    return [
        float(np.exp(np.mean(scipy.stats.entropy(part, part.mean(axis=0, keepdims=True), axis=1))))
        for part in (p[i * size : (i + 1) * size] for i in range(parts))
    ]


def test_inception_score_is_the_mean_over_parts_of_scipys() -> None:
    logits = 2 * np.random.default_rng(0).standard_normal((120, 7))
    logits[:60] *= 0.3
    for parts in (1, 2, 4):
        found, scores = InceptionScore(parts).of(logits), by_scipy(logits, parts)
        assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
        if parts > 1:
            assert found.error == pytest.approx(np.std(scores, ddof=1) / np.sqrt(parts), rel=1e-9)
    assert InceptionScore(1).of(logits).error is None
    shuffled = logits[np.random.RandomState(2020).permutation(120)]
    assert InceptionScore(4, order=2020).of(logits) == InceptionScore(4).of(shuffled)
    in_order = InceptionScore(4).of(logits).value
    assert InceptionScore(4).of(shuffled).value != pytest.approx(in_order, rel=0.02)


def test_inception_score_in_closed_form() -> None:
    assert InceptionScore().of(np.full((50, 9), -3.0)).value == pytest.approx(1, abs=1e-12)
    for k in (2, 5, 10):
        sure = np.tile(1e4 * np.eye(k), (30, 1))  # one-hot, as often each
        assert InceptionScore(3).of(sure).value == pytest.approx(k, rel=1e-12)
    half = np.concatenate([np.zeros((20, 4)), np.tile(1e4 * np.eye(4), (5, 1))])
    found = InceptionScore(2).of(half)  # 1 in one part, 4 in the other
    assert (found.value, found.error) == pytest.approx((2.5, 1.5))
    with pytest.raises(UserError, match="IS in 10 splits needs at least 10 samples, got 9"):
        InceptionScore().of(half[:9])
    with pytest.raises(UserError, match=r"inception_score\.splits must be at least 1, got 0"):
        InceptionScore(0)


def layered(passes: list[int]) -> Features:
    """Of digits, three layers of 20, 6 and 12 numbers; ``passes``: images of each pass."""
    g = np.random.default_rng(0)
    weights = {name: g.standard_normal((64, d)) / 50
               for name, d in (("", 20), ("logits", 6), ("spatial", 12))}  # fmt: skip

    def layers(x: torch.Tensor, names: object) -> dict[str, np.ndarray]:
        passes.append(len(x))
        flat = x.flatten(1).double().numpy()
        return {name: np.tanh(flat @ weights[name]) for name in names}  # type: ignore[attr-defined]

    return Features("inception", "0" * 64, lambda x: layers(x, [""])[""], layers=layers)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


def test_sfid_is_the_distance_in_spatial_features(digits: Dataset, tmp_path: Path) -> None:
    features = layered([])
    x, real = digits.test.x[:300], digits.train.x
    assert features.layers is not None
    mine, theirs = (features.layers(images, ["", "spatial"]) for images in (x, real))
    expected = {name: distance(mine[name], theirs[name]) for name in mine}
    assert expected[""] != pytest.approx(expected["spatial"], rel=0.05)
    moments = {"mu": theirs[""].mean(0), "sigma": np.cov(theirs[""], rowvar=False)}
    spatial = {"mu_s": theirs["spatial"].mean(0), "sigma_s": np.cov(theirs["spatial"].T)}
    files = {name: tmp_path / f"{name}.npz" for name in ("adm", "statistics", "half")}
    few = real[:50].permute(0, 2, 3, 1).numpy()  # beside them, images must not be used
    np.savez(files["adm"], arr_0=few, **moments, **spatial)
    np.savez(files["statistics"], **moments, **spatial)
    np.savez(files["half"], arr_0=real.permute(0, 2, 3, 1).numpy(), **moments)
    for file in (None, *files.values()):
        reference = Reference(features, digits, tmp_path, file=file)
        for metric, layer in (("fd", ""), ("sfid", "spatial")):
            instance = MetricInstance(METRICS[metric], reference.of_layer(layer), 300, {})
            assert instance.of_samples(x).value == pytest.approx(expected[layer], rel=1e-8)
        about = instance.identity.get("reference_moments")
        assert about == {files["adm"]: "mu and sigma"}.get(file)  # where it has both
    for is_fid, label in ((False, "sFD-digits-inception@9"), (True, "sFID-digits@9")):
        of = Reference(replace(features, is_fid=is_fid), digits, tmp_path).of_layer("spatial")
        identity = MetricInstance(SFD(), of, 9, {}).identity
        assert (identity["label"], identity["layer"]) == (label, "spatial")


def test_all_layers_come_of_one_pass_over_a_set_of_images(digits: Dataset, tmp_path: Path) -> None:
    passes: list[int] = []
    reference = Reference(layered(passes), digits, tmp_path)
    layers = {"fd": "", "sfid": "spatial", "inception_score": "logits"}
    made = {
        name: MetricInstance(METRICS[name], reference.of_layer(layer), 100, {})
        for name, layer in layers.items()
    }
    floors = [m.floor for m in made.values()]
    assert passes == [100, 1200]  # held-out images, references
    other = Reference(layered(passes), digits, tmp_path)  # another run, which finds what is kept
    assert other.of_layer("spatial").moments.dimension == 12
    assert other.moments.dimension == 20
    assert passes == [100, 1200]
    assert None not in floors
    score = made["inception_score"].identity
    assert (score["reference"], score["reference_sha256"]) == (None, None)
    against_test = Reference(layered([]), digits, tmp_path, "test").of_layer("logits")
    again = MetricInstance(METRICS["inception_score"], against_test, 100, {}).identity
    assert again["id"] == score["id"]  # it has no reference
    with pytest.raises(UserError, match=r"extractor raw has no logits \(choices: inception"):
        replace(layered([]), name="raw", layers=None).of_layer("logits")
