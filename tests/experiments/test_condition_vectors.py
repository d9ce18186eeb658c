"""Runs on data with condition vectors, from training to what is recorded of their samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import UserError
from fewstep.experiments import validation
from fewstep.experiments.config.run_config import Override, compose
from fewstep.experiments.data import DATA, Dataset, Split
from fewstep.experiments.data.toy import ConditionalGaussians
from fewstep.experiments.evaluation.diagnostics import diagnose_run
from fewstep.experiments.evaluation.sampling import SamplingConfig, draw
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.network import load_network

TINY: list[Override] = [
    "data=conditional_gaussians",
    "data.samples=512",
    "data.test_samples=64",
    "backbone.width=16",
    "backbone.depth=1",
    "training.batch_size=32",
    "training.steps=4",
    "training.label_dropout=0.2",
    "evaluation.steps=[1,2]",
    "evaluation.guidance=[1,2]",
]


def finished(root: Path, *overrides: Override) -> tuple[Path, dict[str, object]]:
    config = compose([*TINY, *overrides, ("runs", str(root))])
    validation.check([config])
    directory = prepare(config)
    run(directory)
    return directory.path, directory.cells()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("teacher"))[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=shortcut_kvfrans"],
        ["objective=mean_flow", "objective.guidance=2"],
        ["objective=scm"],
        ["objective=live_reflow", "objective.pair_guidance=2", "objective.pair_steps=2"],
        ["objective=scd", "objective.teacher_guidance=2"],
        ["objective=reflow", "objective.pairs=40", "objective.pair_steps=2"],
    ],
    ids=lambda o: o[0],
)
def test_objectives_with_guidance_train_and_are_sampled_for_the_same_conditions(
    tmp_path: Path, teacher: Path, overrides: list[Override]
) -> None:
    name = str(overrides[0]).split("=")[1]
    if name in ("scd", "reflow"):
        overrides = [*overrides, ("teacher", str(teacher))]
    path, cells = finished(tmp_path, *overrides)
    records: list[dict] = list(cells.values())  # type: ignore[type-arg, arg-type]
    assert len(records) == 4
    reference: list[dict] = list(prepare_again(teacher).values())  # type: ignore[type-arg]
    conditions = {str(r["conditions"]) for r in [*records, *reference]}
    assert conditions == {str(reference[0]["conditions"])}
    assert reference[0]["conditions"]["dim"] == 2
    (first, *_) = sorted((path / "samples").glob("*.npz"))
    with np.load(first) as arrays:
        assert arrays["conditions"].shape == (64, 2)
        assert "labels" not in arrays
        train = DATA["conditional_gaussians"].load().train
        assert train.y is not None
        np.testing.assert_allclose(np.linalg.norm(arrays["conditions"], axis=1), 1, rtol=1e-6)


def prepare_again(path: Path) -> dict[str, object]:
    from fewstep.experiments.store.run_directory import RunDirectory

    return RunDirectory(path).cells()


def test_a_trained_network_follows_its_conditions(tmp_path: Path) -> None:
    """Mean distance to radius y is that of a Gaussian of width std, 1.25 std, and without y 1.3."""
    config = compose([
        "data=conditional_gaussians", "backbone.width=64", "backbone.depth=2",
        "training.batch_size=256", "training.steps=400", "training.ema=0.98",
        "training.lr=0.003", "training.label_dropout=0.1", "evaluation.steps=[]",
        ("runs", str(tmp_path)),
    ])  # fmt: skip
    directory = prepare(config)
    run(directory)
    dataset = config.data.load()
    net = load_network(config, dataset, directory, "ema")
    drawn = draw(config, dataset, net, SamplingConfig(16), 512, 512)
    assert drawn.y is not None
    distance = (drawn.x - drawn.y).norm(dim=1).mean()
    assert 0.08 < float(distance) < 0.25
    other = (drawn.x - drawn.y.roll(1, 0)).norm(dim=1).mean()
    assert float(other) > 1
    with torch.no_grad():
        noise = torch.randn(512, 2)
        free = config.objective.sample(net, noise, None, 16)
    assert abs(float(free.norm(dim=1).mean()) - 1) < 0.15  # on the ring, all around it
    assert float(free.mean(0).norm()) < 0.25


def test_conditions_are_the_training_splits_own_each_as_often_as_the_others() -> None:
    from fewstep.experiments.evaluation.sampling import _conditions
    from fewstep.experiments.rng import generator

    dataset = ConditionalGaussians(samples=50, test_samples=10).load()
    drawn = _conditions(dataset, 120, generator(3, "labels", 0))
    assert drawn is not None
    assert dataset.train.y is not None
    matches = (drawn[:, None] == dataset.train.y).all(2)
    assert set(matches.sum(0).tolist()) == {2, 3}
    again = _conditions(dataset, 120, generator(3, "labels", 0))
    other = _conditions(dataset, 120, generator(4, "labels", 0))
    assert torch.equal(drawn, again)  # type: ignore[arg-type]
    assert not torch.equal(drawn, other)  # type: ignore[arg-type]


def test_the_data_are_gaussians_around_their_conditions() -> None:
    source = ConditionalGaussians(radius=2.0, std=0.3, samples=20_000)
    train = source.load().train
    assert train.y is not None
    rest = train.x - 2 * train.y
    torch.testing.assert_close(rest.mean(0), torch.zeros(2), rtol=0, atol=0.01)
    torch.testing.assert_close(rest.T.cov(), 0.09 * torch.eye(2), rtol=0, atol=0.003)
    torch.testing.assert_close(source.conditional(train.y[:3]).means, 2 * train.y[:3].double())


def test_guidance_needs_dropped_conditions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training.label_dropout is 0"):
        validation.check([compose([*TINY, "training.label_dropout=0", ("runs", str(tmp_path))])])


def test_diagnostics_take_vectors(tmp_path: Path) -> None:
    config = compose([*TINY, "evaluation.steps=[]", ("runs", str(tmp_path))])
    directory = prepare(config)
    run(directory)
    assert "jump_error" not in diagnose_run(directory, config, rows=64)


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), 0, "vectors of 3 numbers, test has .* of 2"),
        (torch.zeros(4, 3), torch.zeros(4).long(), 0, "test has class labels"),
        (torch.zeros(4, 3), torch.zeros(4, 3), 5, "5 classes, but train has condition vectors"),
        (torch.full((4, 3), torch.nan), torch.zeros(4, 3), 0, "not finite"),
    ],
)
def test_splits_that_do_not_fit_are_refused(
    train: torch.Tensor, test: torch.Tensor, classes: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Dataset("own", Split(X, train), Split(X, test), classes)


def test_vectors_of_another_type_are_refused() -> None:
    with pytest.raises(UserError, match=r"float32 vectors \(4, k\), got torch.float64"):
        Split(X, torch.zeros(4, 3).double())
