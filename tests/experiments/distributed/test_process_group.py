"""Two processes train and sample as one does, whatever the objective."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import Scene, in_float64, play, played
from helpers.tiny import last_tensors, taught
from torch import Tensor

from fewstep.experiments.distributed.batch_sharding import RowShard
from fewstep.experiments.distributed.process_group import Ranks
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.objectives import OBJECTIVES

MUON = ["training.optimiser=muon", "training.auxiliary_lr=0.002"]
ALL = [*OBJECTIVES.names(), "two_calls"]
WAYS = ("ddp", "fsdp")
STEPS, HALF = 8, 4
EXACT = {"rtol": 0.0, "atol": 1e-10}  # float64 numbers of size 1, after up to 8 steps
LOGGED = {"rtol": 3e-7, "atol": 0.0}  # what is logged is float32

# 13 rows are shares of 7 and 6, and bootstrap rows for one process alone
SETTINGS = [
    f"training.steps={STEPS}",
    "training.batch_size=13",
    "training.label_dropout=0.2",
    "training.weight_decay=0.01",
    "training.clip=0.5",
    "training.ema=0.9",
    f"training.log_every={HALF}",
    "training.validate_every=0",
    "backbone.dropout=0.2",
]
CELLS = [{"steps": 3}, {"steps": 2, "guidance": 1.5, "sample_set": 1}]
# every kind of state: learned parts, a former self, momenta of matrices, a companion
RESUMED = [("ddp", "sid"), ("fsdp", "progressive_distillation"), ("fsdp", "muon")]
# a network's own means, which the backward pass or dropout depend on
OPTIONS = {
    "recomputed": ["objective=scm", "training.activation_checkpointing=true"],
    "u-net": ["objective=mean_flow", "backbone=unet_digits", "backbone.width=8"],
    "adaptive": ["objective=flow_matching", "objective.solver=adaptive"],
    "in parts": ["objective=shortcut", "training.batch_size=12", "training.microbatch=4"],
    "classes": ["objective=scm", "training.batch_size=12", "training.class_rows=4"],
    "two rows": ["objective=shortcut", "training.batch_size=2"],
}


@dataclass(frozen=True)
class Played:
    """The results of every scene in two processes; ``single_process`` plays it in this one."""

    root: Path
    settings: dict[str, list[Any]]
    ranks: list[dict[str, Any]]

    def single_process(self, name: str) -> dict[str, Any]:
        with in_float64():
            return play(scene(self.root / "alone", name, "ddp", self.settings[name], cells=CELLS))


def scene(
    root: Path, name: str, way: str, settings: list[Any], until: int = 0, **more: Any
) -> Scene:
    settings = [*settings, f"training.parallel={way}"]
    place = root / way / name.removeprefix("half of ")
    return Scene(f"{root.name} {way} {name}", str(place), settings, until, **more)


def directory(root: Path, name: str, way: str) -> RunDirectory:
    """Of the one run that was played there."""
    (path,) = (root / way / name / "loose").iterdir()
    return RunDirectory(path)


pytestmark = pytest.mark.xdist_group("distributed")  # one story for all of them


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two processes are started once, and play everything."""
    root = tmp_path_factory.mktemp("story")
    with in_float64():
        taught_ = {name: [*SETTINGS, *taught(root / "teacher", name)] for name in ALL}
        for name in OBJECTIVES.names():
            if OBJECTIVES[name].group_size > 1:  # the third group is in both processes
                taught_[name].append(f"training.batch_size={3 * OBJECTIVES[name].group_size}")
        taught_["muon"] = [*taught_["scm"], *MUON]
        settings = {
            name: [list(o) if isinstance(o, tuple) else o for o in overrides]
            for name, overrides in taught_.items()
        }
        settings |= {
            name: [*SETTINGS, f"training.steps={HALF}", *options]
            for name, options in OPTIONS.items()
        }
        scenes = []
        for way in WAYS:
            cells = CELLS if way == "ddp" else []  # the whole network samples, either way
            scenes += [
                scene(root / "whole", name, way, settings[name], cells=cells) for name in settings
            ]
        scenes.append(scene(root, "whimsical", "ddp", [*SETTINGS, "objective=whimsical"]))
        for way, name in RESUMED:
            play(scene(root / "1 then 2", name, way, settings[name], HALF))
            scenes += [
                scene(root / "2 then 1", name, way, settings[name], HALF),
                scene(root / "1 then 2", name, way, settings[name]),
                scene(root / "2 then 2", f"half of {name}", way, settings[name], HALF),
                scene(root / "2 then 2", name, way, settings[name]),
            ]
        ranks = played(scenes, root)
        for way, name in RESUMED:
            play(scene(root / "2 then 1", name, way, settings[name]))
    yield Played(root, settings, ranks)
    shutil.rmtree(root)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, **EXACT, msg=f"{name} differs".format)


@pytest.mark.parametrize("name", [*ALL, "muon", *OPTIONS])
def test_two_processes_learn_and_sample_as_one(story: Played, name: str) -> None:
    one = story.single_process(name)
    assert len(one["losses"]) == (HALF if name in OPTIONS else STEPS)
    assert max(float(g.abs().max()) for g in one["gradients"].values()) > 1e-3
    expected = last_tensors(directory(story.root / "alone", name, "ddp"))
    for way in WAYS:
        first, second = (found[f"whole {way} {name}"] for found in story.ranks)
        for what in ("losses", "norms", "last"):
            assert first[what] == second[what]
        for what in ("losses", "norms"):
            torch.testing.assert_close(first[what], one[what], **LOGGED)
        torch.testing.assert_close(first["last"], one["last"], **LOGGED)
        close(first["gradients"], one["gradients"])
        run = directory(story.root / "whole", name, way)
        close(last_tensors(run), expected)
        assert [row["step"] for row in run.metrics()] == (
            [HALF] if name in OPTIONS else [HALF, STEPS]
        )
        for samples, same, (x, nfe) in zip(
            first["samples"], second["samples"], one["samples"], strict=False
        ):
            assert torch.equal(samples[0], x)
            assert torch.equal(same[0], x)
            assert samples[1] == nfe
            assert len(x.unique()) > 20
    assert len(story.ranks[1][f"whole ddp {name}"]["samples"]) == len(CELLS)


@pytest.mark.parametrize(("way", "name"), RESUMED)
def test_a_run_goes_on_with_another_number_of_processes(story: Played, way: str, name: str) -> None:
    parts = {
        kind: last_tensors(directory(story.root / kind, name, way))
        for kind in ("whole", "2 then 1", "1 then 2", "2 then 2")
    }
    assert any(key.startswith(("snapshot.", "auxiliary.", "companion.")) for key in parts["whole"])
    for kind, tensors in parts.items():
        close(tensors, parts["whole"])
        if kind == "2 then 2":
            assert all(torch.equal(tensors[key], parts["whole"][key]) for key in tensors)
    for found in story.ranks:
        halves = [found[f"2 then 2 {way} {half}{name}"]["losses"] for half in ("half of ", "")]
        assert [*halves[0], *halves[1]] == found[f"whole {way} {name}"]["losses"]
        assert len(halves[0]) == HALF


def test_a_loss_that_depends_on_the_process_is_refused(story: Played) -> None:
    for found in story.ranks:
        told = found[f"{story.root.name} ddp whimsical"]["error"]
        assert told.startswith("the processes of this run disagree about its loss")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 13])
def test_shares_are_even_and_leave_nothing_out(rows: int, size: int) -> None:
    shares = [RowShard.of(rows, Ranks(rank, size)) for rank in range(size)]
    own = [list(range(rows))[s.start :][: s.kept] for s in shares]
    assert [i for rows in own for i in rows] == list(range(rows))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert all(s.stop > s.start for s in shares)  # none without a row to compute


def test_nothing_to_share_is_an_empty_share() -> None:
    assert RowShard.of(0, Ranks(1, 2)) == RowShard(0, 0, 0, 0)
