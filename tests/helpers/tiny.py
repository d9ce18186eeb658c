"""Runs small enough to be trained in a test, and entries registered for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.experiments.config import run_config
from fewstep.experiments.config.run_config import Override, RunConfig, compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.trainer import Trainer
from fewstep.objectives import OBJECTIVES

TINY: list[Override] = [
    "data=digits",
    "backbone.width=16",
    "backbone.depth=1",
    "backbone.heads=2",
    "training.batch_size=16",
    "training.steps=6",
    "evaluation.steps=[]",
    "evaluation.extractor=raw",
]


def tiny(root: Path, *overrides: Override) -> RunConfig:
    """A small run on the digits under the run root ``root``."""
    return compose([*TINY, ("runs", str(root)), *overrides])


def trainer(config: RunConfig) -> Trainer:
    """The trainer of ``config``, with a directory of its own that is not a prepared run."""
    directory = RunDirectory(Path(config.values["runs"]) / "loose" / config.key)
    directory.path.mkdir(parents=True, exist_ok=True)
    return Trainer(config, config.data.load(), directory)


def taught(root: Path, objective: str, *overrides: Override) -> list[Override]:
    """The settings that ``objective`` needs in a tiny run: a finished teacher, a few pairs."""
    settings: list[Override] = [f"objective={objective}"]
    if OBJECTIVES[objective].needs_teacher:
        # it knows "no label", which a student with label dropout asks it for
        knows = ("training.steps=2", "training.label_dropout=0.1")
        teacher = prepare(tiny(root / "teacher", *knows, *overrides))
        if teacher.result() is None:
            run(teacher)
        settings.append(("teacher", str(teacher.path)))
    if OBJECTIVES[objective].continues:
        first = prepare(tiny(root / "teacher", "objective=ect", "training.steps=2", *overrides))
        if first.result() is None:
            run(first)
        settings += [("teacher", str(first.path)), "training.init=teacher"]
    if OBJECTIVES[objective].needs_pairs:
        settings += ["objective.pairs=40", "objective.pair_steps=2"]
    return settings


def train(config: RunConfig) -> Trainer:
    made = trainer(config)
    made.prepare(lambda: False, lambda done, total, rate: None)
    made.train(lambda: False, lambda done, total, rate: None)
    return made


def flat(module: torch.nn.Module) -> Tensor:
    """All parameters in one vector, copied."""
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def last_tensors(directory: RunDirectory) -> dict[str, Tensor]:
    """The tensors of the newest checkpoint."""
    return load_file(sorted(directory.checkpoints.glob("step-*"))[-1] / "tensors.safetensors")


def checkpoint_steps(directory: RunDirectory) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in directory.checkpoints.glob("step-*"))


def times_changed(folder: Path) -> dict[str, int]:
    """When each file below ``folder`` was written, in nanoseconds."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


@contextmanager
def registered(group: str, name: str, entry: Any) -> Iterator[None]:
    """``entry`` in the registry of ``group`` as long as the context lasts."""
    registry = run_config.GROUPS[group]
    registry.add(name, entry)
    try:
        yield
    finally:
        del registry._entries[name]
        run_config._composed.cache_clear()
