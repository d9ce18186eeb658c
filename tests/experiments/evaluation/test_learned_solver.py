"""A solver that is trained for a run: kept with it, the same each time, its cost told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny
from torch import Tensor, nn

from fewstep.analysis.columns import cell_origin
from fewstep.experiments.config.run_config import Override, RunConfig, amend, compose
from fewstep.experiments.cost import flops
from fewstep.experiments.data import Dataset
from fewstep.experiments.evaluation import learned_solver
from fewstep.experiments.evaluation.evaluate import cells, cells_lacking, evaluate
from fewstep.experiments.evaluation.sampling import SamplingConfig, calls, draw
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.json_files import CorruptFile
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.objectives.core import amed

QUICK = "trajectories: 6, teacher_steps: 4"
AMED = f"evaluation.samplers=[{{solver: amed, {QUICK}}}]"
SAMPLER = (("solver", "amed"), ("teacher_steps", 4), ("trajectories", 6))
FEW = "evaluation.samples=40"


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amed, "UPDATES", 3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return tiny(Path("unused")).data.load()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[RunConfig, RunDirectory]:
    config = tiny(tmp_path, "training.label_dropout=0.1", "training.lr=0.01")
    directory = prepare(config)
    run(directory)
    return config, directory


def evaluated(
    trained: tuple[RunConfig, RunDirectory], digits: Dataset, *overrides: Override
) -> Any:
    config = amend(trained[0], [FEW, *overrides])
    names = evaluate(config, digits, trained[1], lambda *told: None)
    return [json.loads(trained[1].cell_file(name).read_text()) for name in names]


def images(directory: RunDirectory) -> list[Any]:
    return [np.load(file)["images"] for file in sorted(directory.samples.glob("*.npz"))]


def test_it_is_trained_once_and_gives_the_same_samples_again(
    trained: tuple[RunConfig, RunDirectory], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = trained
    (record,) = evaluated(trained, digits, "evaluation.steps=[2]", AMED)
    assert record["nfe"] == 4
    assert record["cell"]["sampler"] == {
        "solver": "amed", "trajectories": 6, "teacher_steps": 4, "scale": 0.01
    }  # fmt: skip
    told = record["sampler_training"]
    assert told["passes"] == amed.passes(amed.Amed(6, 4), 2)
    assert told["seconds"] > 0
    assert len(told["midpoint_errors"]) == len(told["errors"]) == 2
    (file,) = directory.solvers.iterdir()
    config = amend(trained[0], [FEW, "evaluation.steps=[2]", AMED])
    assert cells_lacking(config, directory) == 0
    drawn = images(directory)

    for name in ("evaluations", "samples"):  # the solver is trained again, to the same weights
        for old in (directory.path / name).iterdir():
            old.unlink()
    stored = json.loads(file.read_text())
    file.unlink()
    (other,) = evaluated(trained, digits, "evaluation.steps=[2]", AMED)
    assert other["value"] == record["value"]
    assert json.loads(file.read_text())["weights"] == stored["weights"]

    def refuse(*about: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(learned_solver, "train", refuse)
    more = evaluated(trained, digits, "evaluation.steps=[2]", AMED, "evaluation.metrics=[fd,kid]",
                     "evaluation.sample_sets=2")  # fmt: skip
    assert len(more) == 3
    assert all(r["sampler_training"] == other["sampler_training"] for r in more)
    assert any(np.array_equal(drawn[0], again) for again in images(directory))
    file.write_text("{")
    with pytest.raises(CorruptFile, match=file.name):
        evaluated(trained, digits, "evaluation.steps=[2]", AMED, "evaluation.sample_sets=3")


def test_each_way_of_sampling_has_a_solver_of_its_own(
    trained: tuple[RunConfig, RunDirectory], digits: Dataset
) -> None:
    wide = f"evaluation.samplers=[{{solver: amed, scale: 0.2, {QUICK}}}]"
    for overrides in (
        ["evaluation.steps=[1,2]", AMED],
        ["evaluation.steps=[2]", wide],
        ["evaluation.steps=[2]", AMED, "evaluation.weights=[raw]"],
        ["evaluation.times=[[1,0.3,0]]", AMED],
    ):
        before = len(list(trained[1].solvers.glob("*")))
        made = evaluated(trained, digits, *overrides)
        assert len(list(trained[1].solvers.glob("*"))) == before + len(made)
    (guided,) = evaluated(trained, digits, "evaluation.steps=[2]", AMED, "evaluation.guidance=[2]")
    assert guided["nfe"] == 8
    assert guided["sampler_training"]["passes"] == 2 * amed.passes(amed.Amed(6, 4), 2)


def test_untrained_steps_would_be_those_of_the_midpoint_rule(
    trained: tuple[RunConfig, RunDirectory], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amed, "UPDATES", 0)
    (learned,) = evaluated(trained, digits, "evaluation.steps=[3]", AMED)
    (midpoint,) = evaluated(
        trained, digits, "evaluation.steps=[3]", "evaluation.samplers=[{solver: midpoint}]"
    )
    assert learned["value"] == pytest.approx(midpoint["value"], rel=1e-3)
    assert learned["nfe"] == midpoint["nfe"] == 6


def test_any_objective_that_learns_a_velocity_has_it(digits: Dataset) -> None:
    cell = SamplingConfig(2, sampler=SAMPLER)
    for name in ("flow_matching", "live_reflow", "facm"):
        config = tiny(Path("unused"), ("objective", name))
        assert calls(config, digits, cell) == 4
        assert cell.objective(config.objective) is config.objective
        assert cell.describe(config.objective)["sampler"]["solver"] == "amed"


def test_a_network_that_is_not_finite_leaves_no_solver(digits: Dataset, tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, d: object = None, y: object = None) -> Tensor:
            return x / 0

    cell = SamplingConfig(1, sampler=SAMPLER)
    with pytest.raises(FloatingPointError, match=r"solver amed, 1 steps: its error is not finite"):
        draw(tiny(Path("unused")), digits, Broken(), cell, 5, 10, solvers=tmp_path)
    assert not list(tmp_path.iterdir())


def test_its_training_is_part_of_what_sampling_costs(digits: Dataset) -> None:
    config = tiny(Path("unused"), "evaluation.steps=[1,2]", FEW, AMED)
    forward = flops.forward_flops(config)
    assert forward is not None
    found = flops.sampling_flops(config, digits, cells(config.evaluation, config.training))
    trained = sum(amed.passes(amed.Amed(6, 4), steps) for steps in (1, 2))
    assert found == (40 * (2 + 4) + trained) * forward


def test_the_command_that_makes_its_cell_again() -> None:
    sampler = {"solver": "amed", "trajectories": 6, "teacher_steps": 4, "scale": 0.2}
    cell = {"steps": 2, "times": None, "weights": "ema", "guidance": 1.0, "sample_set": 0}
    told = cell_origin({"cell": {**cell, "sampler": sampler}, "provenance": {}})["evaluation"]
    assert compose(shlex.split(told)).evaluation.samplers == [sampler]
