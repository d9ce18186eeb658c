"""Cells: the same noise for all, exactly N samples, calls counted, nothing computed twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import times_changed, tiny
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import Override, RunConfig, amend, compose
from fewstep.experiments.config.settings import Evaluation, Training
from fewstep.experiments.data import Dataset, to_uint8
from fewstep.experiments.evaluation.evaluate import cells, cells_lacking, evaluate
from fewstep.experiments.evaluation.measurement import main_metric
from fewstep.experiments.evaluation.sampling import SamplingConfig, calls, draw
from fewstep.experiments.rng import generator
from fewstep.experiments.run import RunFailed, prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import build_network, load_network
from fewstep.objectives import OBJECTIVES

ALL = OBJECTIVES.names()
GUIDED = "training.label_dropout=0.1"  # else a network does not know "no label"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return tiny(Path("unused")).data.load()


class Recorder(nn.Module):
    """A network that answers 0 and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.x: list[Tensor] = []
        self.y: list[Tensor | None] = []

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        self.x.append(x)
        self.y.append(y)
        return torch.zeros_like(x)


def restless(config: RunConfig, dataset: Dataset) -> nn.Module:
    """A network with nothing at 0, so that its samples depend on all it is told."""
    torch.manual_seed(0)
    net = build_network(config, dataset)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net.eval()


# ------------------------------------------------------------------------------ noise and labels


def start(digits: Dataset, name: str, *overrides: Override, sample_set: int = 0) -> Recorder:
    """What the network is asked first."""
    net = Recorder()
    config = tiny(Path("unused"), ("objective", name), *overrides)
    draw(config, digits, net, SamplingConfig(1, sample_set=sample_set), 50, 1000)
    return net


@pytest.mark.parametrize("name", ALL)
def test_all_objectives_of_a_seed_start_from_the_same_noise_and_labels(
    digits: Dataset, name: str
) -> None:
    reference, mine = start(digits, "flow_matching"), start(digits, name)
    noise = mine.x[0] / getattr(
        OBJECTIVES[name], "input_time", 1
    )  # the share of noise it begins at
    torch.testing.assert_close(noise, reference.x[0], rtol=1e-6, atol=0)
    assert mine.y[0] is not None
    assert torch.equal(mine.y[0], reference.y[0])
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_other_seeds_and_sample_sets_start_elsewhere(digits: Dataset) -> None:
    starts = [
        start(digits, "flow_matching"),
        start(digits, "flow_matching", "seed=1"),
        start(digits, "flow_matching", sample_set=1),
    ]
    for i, one in enumerate(starts):
        for another in starts[i + 1 :]:
            assert not torch.equal(one.x[0], another.x[0])
            assert not torch.equal(one.y[0], another.y[0])  # type: ignore[arg-type]


def test_training_settings_do_not_move_the_start(digits: Dataset) -> None:
    one, two = start(digits, "scm"), start(digits, "scm", "training.lr=1", "backbone.width=32")
    assert torch.equal(one.x[0], two.x[0])


@pytest.mark.parametrize("samples", [7, 100, 597, 1200, 3000])
def test_labels_have_the_proportions_of_the_training_split(digits: Dataset, samples: int) -> None:
    drawn = draw(tiny(Path("unused")), digits, Recorder(), SamplingConfig(1), samples, 1000)
    assert drawn.y is not None
    assert digits.train.y is not None
    got = drawn.y.bincount(minlength=10).double()
    due = digits.train.y.bincount().double() * samples / len(digits.train)
    assert float((got - due).abs().max()) <= 1
    if samples > 100:
        assert not torch.equal(drawn.y, drawn.y.sort().values)  # shuffled


def test_one_class_in_place_of_the_mixture(digits: Dataset) -> None:
    net = Recorder()
    drawn = draw(tiny(Path("unused")), digits, net, SamplingConfig(1), 30, 1000, label=7)
    assert drawn.y is not None
    assert net.y[0] is not None
    assert drawn.y.tolist() == net.y[0].tolist() == [7] * 30


# --------------------------------------------------------------------------- how many, how often


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_size", [597, 100, 1000])
def test_exactly_the_samples_asked_for(digits: Dataset, name: str, batch_size: int) -> None:
    net = Recorder()
    drawn = draw(
        tiny(Path("unused"), ("objective", name)), digits, net, SamplingConfig(1), 597, batch_size
    )
    assert drawn.x.shape == (597, 1, 8, 8)
    assert drawn.x.dtype == torch.uint8
    assert drawn.y is not None
    assert len(drawn.y) == 597
    assert max(len(x) for x in net.x) <= batch_size
    assert sum(len(x) for x in net.x) == 597
    assert drawn.nfe == 1  # of each sample, not of all batches


def test_fifty_thousand_are_fifty_thousand() -> None:
    config = compose(["data=gaussians"])
    net = Recorder()
    drawn = draw(config, config.data.load(), net, SamplingConfig(1), 50_000, 256)
    assert len(drawn.x) == 50_000  # 50,000 // 256 * 256 is 49,920
    assert len(drawn.x.unique(dim=0)) == 50_000  # blocks do not repeat each other
    assert max(len(x) for x in net.x) <= 256


@pytest.mark.parametrize("name", ALL)
def test_the_batch_size_changes_no_sample(digits: Dataset, name: str) -> None:
    """Not even where the sampler draws fresh noise on its way."""
    config = tiny(Path("unused"), ("objective", name))
    net = restless(config, digits)
    small, large = (draw(config, digits, net, SamplingConfig(3), 597, size) for size in (100, 1000))
    assert torch.equal(small.y, large.y)  # type: ignore[arg-type]
    difference = (small.x.int() - large.x.int()).abs()  # sums in another order, then rounded
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 1e-3
    assert len(small.x.unique()) > 100


@pytest.mark.parametrize("name", ALL)
def test_network_calls_are_counted(digits: Dataset, name: str) -> None:
    config = tiny(Path("unused"), GUIDED, ("objective", name))
    for steps in (1, 2, 5):
        assert draw(config, digits, Recorder(), SamplingConfig(steps), 3, 10).nfe == steps
        guided = SamplingConfig(steps, guidance=2.0)
        assert draw(config, digits, Recorder(), guided, 3, 10).nfe == 2 * steps
        assert (calls(config, digits, SamplingConfig(steps)), calls(config, digits, guided)) == (
            steps,
            2 * steps,
        )


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_solvers_of_second_order_cost_two_calls(digits: Dataset, solver: str) -> None:
    config = tiny(Path("unused"), GUIDED, ("objective.solver", solver))
    assert draw(config, digits, Recorder(), SamplingConfig(4), 3, 10).nfe == 8
    assert draw(config, digits, Recorder(), SamplingConfig(4, guidance=2.0), 3, 10).nfe == 16
    assert calls(config, digits, SamplingConfig(4, guidance=2.0)) == 16


def test_a_cell_may_have_a_sampler_of_its_own(digits: Dataset) -> None:
    config = tiny(Path("unused"), GUIDED)
    net = restless(config, digits)
    other = tiny(Path("unused"), GUIDED, "objective.solver=heun")
    cell = SamplingConfig(2, sampler=(("solver", "heun"),))
    drawn, expected = (
        draw(config, digits, net, cell, 9, 9),
        draw(other, digits, net, SamplingConfig(2), 9, 9),
    )
    assert torch.equal(drawn.x, expected.x)
    assert drawn.nfe == expected.nfe == 4
    assert cell.describe(config.objective) == SamplingConfig(2).describe(other.objective)
    assert not torch.equal(drawn.x, draw(config, digits, net, SamplingConfig(2), 9, 9).x)


def test_guidance_asks_with_and_without_labels(digits: Dataset) -> None:
    net = Recorder()
    draw(tiny(Path("unused"), GUIDED), digits, net, SamplingConfig(1, guidance=2.0), 20, 20)
    assert sorted(y is None for y in net.y) == [False, True]
    assert all(bool((y < 10).all()) for y in net.y if y is not None)


def test_guidance_acts_in_its_interval_and_its_calls_are_counted(digits: Dataset) -> None:
    cell = SamplingConfig(
        4, guidance=2.0, guidance_interval=(0.3, 0.8)
    )  # of the times 1, 3/4, 1/2, 1/4
    drawn = draw(tiny(Path("unused"), GUIDED), digits, net := Recorder(), cell, 20, 20)
    assert drawn.nfe == 6
    assert [y is None for y in net.y] == [False, False, True, False, True, False]
    objective = tiny(Path("unused"), GUIDED).objective
    assert cell.describe(objective)["sampler"] == {
        "solver": "euler",
        "guidance_interval": "0.3-0.8",
    }


def test_guidance_of_a_network_that_knows_no_missing_label(digits: Dataset) -> None:
    config = tiny(Path("unused"))
    for scale in (0.0, 2.0):
        cell = SamplingConfig(1, guidance=scale)
        with pytest.raises(UserError, match=rf"guidance {scale:g} needs .*label_dropout is 0"):
            draw(config, digits, Recorder(), cell, 3, 10)
    with pytest.raises(UserError, match=r"training.label_dropout must be .* less than 1, got 1"):
        tiny(Path("unused"), "training.label_dropout=1")


def test_calls_of_an_adaptive_solver_are_the_mean_over_all_samples(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of samples takes steps of its own, here more in those of four samples."""

    class Uneven(Recorder):
        def forward(self, x: Tensor, t: Tensor, *about: Tensor | None) -> Tensor:
            return x * (20 if len(x) == 4 else 1)

    config = tiny(Path("unused"), "objective.solver=adaptive")
    monkeypatch.setattr("fewstep.experiments.evaluation.sampling.BLOCK", 4)
    images: list[int] = []
    drawn = draw(config, digits, Uneven(), SamplingConfig(1), 10, 1000, images.append)
    by_block = [images.count(4), images.count(2)]
    assert by_block[0] / 2 != by_block[1]  # else this would show nothing
    assert drawn.nfe == math.ceil(sum(images) / 10) != by_block[1]


def test_guidance_of_data_without_labels(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    bare = config.data.load()
    bare = Dataset("bare", replace(bare.train, y=None), replace(bare.test, y=None), 0)
    with pytest.raises(UserError, match=r"guidance 2 needs labels, and bare has none"):
        draw(config, bare, Recorder(), SamplingConfig(1, guidance=2.0), 3, 10)
    assert draw(config, bare, Recorder(), SamplingConfig(1), 3, 10).y is None


def test_samples_that_are_not_finite_are_no_samples(digits: Dataset) -> None:
    class Broken(Recorder):
        def forward(self, x: Tensor, *rest: Any, **more: Any) -> Tensor:
            return torch.full_like(x, float("nan"))

    with pytest.raises(FloatingPointError, match="at 2 steps"):
        draw(tiny(Path("unused")), digits, Broken(), SamplingConfig(2), 3, 10)


def test_images_are_clipped_then_rounded(digits: Dataset) -> None:
    """With a network that answers 0, a flow's samples are its noise."""
    drawn = draw(tiny(Path("unused")), digits, Recorder(), SamplingConfig(1), 50, 1000)
    noise = torch.randn(50, 1, 8, 8, generator=generator(0, "noise", 0)).double().numpy()
    expected = np.rint((np.clip(noise, -1, 1) + 1) * 127.5)
    assert np.abs(drawn.x.numpy() - expected).max() <= 1
    assert (drawn.x.numpy() == expected).mean() > 0.999
    assert torch.equal(to_uint8(drawn.x), drawn.x)


# ------------------------------------------------------------------------------------ the cells


def test_cells_are_the_product_of_what_is_asked() -> None:
    asked = Evaluation(
        steps=[1, 4],
        times=[[1.0, 0.5, 0.0]],
        weights=["ema", "raw"],
        guidance=[1.0, 2.0],
        sample_sets=2,
    )
    made = cells(asked, Training())
    assert len(made) == len(set(made)) == 3 * 2 * 2 * 2
    assert SamplingConfig(2, (1.0, 0.5, 0.0), "raw", 2.0, 1) in made
    assert SamplingConfig(4, None, "ema", 1.0, 0) in made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDirectory]:
    """A trained run without a cell; tests use a copy of it."""
    fast = ("training.steps=20", "training.lr=0.01")
    config = tiny(tmp_path_factory.mktemp("runs"), GUIDED, *fast)
    directory = prepare(config)
    run(directory)
    return config, directory


class Study:
    """Evaluations of one trained run, into a directory of the test's own."""

    def __init__(
        self, trained: tuple[RunConfig, RunDirectory], digits: Dataset, root: Path
    ) -> None:
        self.config, source = trained
        self.digits, self.cache = digits, root / "_cache"
        self.directory = RunDirectory(root / "train" / self.config.key)
        self.directory.path.mkdir(parents=True)
        self.directory.checkpoints.symlink_to(source.checkpoints)

    def evaluate(self, *overrides: Override) -> list[str]:
        config = amend(self.config, overrides)
        return evaluate(config, self.digits, self.directory, lambda *told: None)


@pytest.fixture
def study(trained: tuple[RunConfig, RunDirectory], digits: Dataset, tmp_path: Path) -> Study:
    return Study(trained, digits, tmp_path)


def test_cells_are_computed_once(study: Study) -> None:
    first = study.evaluate("evaluation.steps=[1,3]")
    assert len(first) == 2
    before = times_changed(study.directory.path)
    assert study.evaluate("evaluation.steps=[1,3]") == []
    assert study.evaluate("evaluation.steps=[3]") == []
    assert times_changed(study.directory.path) == before


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        (["evaluation.steps=[1,2,3]"], 1),
        (["evaluation.times=[[1,0.2,0]]"], 1),
        (["evaluation.weights=[ema,raw]"], 2),
        (["evaluation.guidance=[1,1.5]"], 2),
        (["evaluation.sample_sets=2"], 2),
        (["objective.solver=heun"], 2),
        (["evaluation.samples=100"], 2),
        (["evaluation.reference=test"], 2),
        (["evaluation.batch_size=50"], 0),
        (["evaluation.samplers=[{solver:heun}]"], 2),
        (["evaluation.samplers=[{},{solver:euler},{solver:heun}]"], 2),  # euler is there
    ],
)
def test_only_what_is_new_is_added(study: Study, overrides: Sequence[str], number: int) -> None:
    study.evaluate("evaluation.steps=[1,3]")
    before = times_changed(study.directory.path)
    config = amend(study.config, ["evaluation.steps=[1,3]", *overrides])
    assert cells_lacking(config, study.directory) == number  # foretold without computing
    assert len(study.evaluate("evaluation.steps=[1,3]", *overrides)) == number
    after = times_changed(study.directory.path)
    assert before.items() <= after.items()
    assert len(after) - len(before) == 2 * number  # a value and its samples each
    assert cells_lacking(config, study.directory) == 0


def test_what_a_cell_file_tells(study: Study) -> None:
    (name,) = study.evaluate("evaluation.steps=[2]", "evaluation.samples=100")
    assert re.fullmatch(r"steps0002-ema-[0-9a-f]{12}", name)
    record = json.loads(study.directory.cell_file(name).read_text())
    assert record["cell"] == {
        "steps": 2,
        "times": None,
        "sampler": {"solver": "euler"},
        "weights": "ema",
        "guidance": 1.0,
        "sample_set": 0,
    }
    metric = record["metric"]
    assert re.fullmatch("[0-9a-f]{12}", metric.pop("id"))
    assert metric == {
        "name": "FD",
        "extractor": "raw",
        "extractor_sha256": metric["extractor_sha256"],
        "data": "digits",
        "samples": 100,
        "reference": "train",
        "reference_sha256": study.digits.train.sha256,
        "reference_samples": 1200,
        "resize": "none",
        "rounding": "clip-round-uint8",
        "label": "FD-digits-raw@100",
    }
    assert record["nfe"] == 2
    assert record["value"] > record["floor"] > 0
    assert record["seconds"] > 0
    assert record["images_per_second"] == pytest.approx(100 / record["seconds"])
    with np.load(study.directory.samples / f"{name}.npz") as kept:
        assert kept["images"].shape == (64, 1, 8, 8)
        assert kept["images"].dtype == np.uint8
        assert kept["labels"].shape == (64,)


def test_metrics_that_differ_have_other_ids(digits: Dataset, tmp_path: Path) -> None:
    settings = [
        Evaluation(extractor="raw"),
        Evaluation(extractor="raw", samples=100),
        Evaluation(extractor="raw", reference="test"),
    ]
    ids = [main_metric(s, digits, tmp_path).identity["id"] for s in settings]
    assert len(set(ids)) == 3
    same = Evaluation(extractor="raw", samples=len(digits.test), steps=[9], batch_size=3)
    assert main_metric(same, digits, tmp_path).identity["id"] == ids[0]


def test_a_value_is_the_distance_of_the_samples_drawn(study: Study) -> None:
    study.evaluate("evaluation.steps=[2]")
    (record,) = study.directory.cells().values()
    net = load_network(study.config, study.digits, study.directory, "ema")
    drawn = draw(study.config, study.digits, net, SamplingConfig(2), 597, 1000)
    assert record["value"] == pytest.approx(
        distance(pixels(drawn.x), pixels(study.digits.train.x)), rel=1e-3
    )
    (name,) = study.directory.cells()
    with np.load(study.directory.samples / f"{name}.npz") as kept:
        assert np.array_equal(kept["images"], drawn.x[:64].numpy())


# --------------------------------------------------------------------------------- the floor


def pixels(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy() / 127.5 - 1


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook's formula: the trace of a square root is the sum of the eigenvalues' roots."""
    (mu_a, S_a), (mu_b, S_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    roots = np.sqrt(np.linalg.eigvals(S_a @ S_b).real.clip(min=0))
    return float(((mu_a - mu_b) ** 2).sum() + np.trace(S_a + S_b) - 2 * roots.sum())


@pytest.mark.parametrize("samples", [597, 300])
def test_the_floor_is_real_against_real(digits: Dataset, tmp_path: Path, samples: int) -> None:
    metric = main_metric(Evaluation(extractor="raw", samples=samples), digits, tmp_path)
    index = torch.randperm(597, generator=generator(0, "floor"))[:samples]
    expected = distance(pixels(digits.test.x[index]), pixels(digits.train.x))
    assert metric.floor == pytest.approx(expected, rel=1e-3)
    assert len(set(index.tolist())) == samples


def test_the_floor_against_the_test_split(digits: Dataset, tmp_path: Path) -> None:
    metric = main_metric(
        Evaluation(extractor="raw", samples=1200, reference="test"), digits, tmp_path
    )
    expected = distance(pixels(digits.train.x), pixels(digits.test.x))
    assert metric.floor == pytest.approx(expected, rel=1e-3)


def test_no_floor_for_more_samples_than_are_held_out(digits: Dataset, tmp_path: Path) -> None:
    assert main_metric(Evaluation(extractor="raw", samples=598), digits, tmp_path).floor is None


def test_the_reference_against_itself_is_no_distance(digits: Dataset, tmp_path: Path) -> None:
    metric = main_metric(Evaluation(extractor="raw", samples=1200), digits, tmp_path)
    assert metric.of_samples(digits.train.x).value == pytest.approx(0, abs=1e-6)
    with pytest.raises(AssertionError):
        metric.of_samples(digits.train.x[:1199])


def test_a_metric_that_cannot_be_taken_keeps_no_other_from_it(tmp_path: Path) -> None:
    asked = (
        "evaluation.steps=[1,2]",
        "evaluation.samples=64",
        "evaluation.metrics=[fd_inf,fd,kid]",
    )
    directory = prepare(tiny(tmp_path, "training.steps=1", *asked))
    with pytest.raises(RunFailed, match="needs at least"):
        run(directory)
    found = {(c["metric"]["name"], c["cell"]["steps"]) for c in directory.cells().values()}
    assert found == {("FD", 1), ("FD", 2), ("KID", 1), ("KID", 2)}
    failure = directory.failure()
    assert failure is not None
    assert failure["class"] == "bad_data"
