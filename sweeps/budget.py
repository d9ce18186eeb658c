"""Equal budgets: how many training steps each run of a sweep gets, its teacher's cost included.

::

    budget: flops                     # steps | images | flops | seconds
    budget:
      equal: flops
      as: {objective: flow_matching}  # who sets it; by default the sweep's first run
      # amount: 1.0e15                # or this much, in steps, images, FLOPs or seconds
      # teacher: false                # what a teacher cost is not the student's

All runs spend what the run named by ``as`` spends with its own ``training.steps``; a student, so
much with all its teachers. A value of an axis that sets ``training.steps`` keeps them: a teacher
that is to leave its students something is written so.

FLOPs are those of training steps, as the objectives state them, and of drawing stored pairs
(``experiments/flops.py``). Seconds are of training
alone, at the speed of finished runs; sweep.json keeps the speeds, for a plan must not change with
the weather.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, check_choice, check_range, unknown
from fewstep.experiments.config import RunConfig
from fewstep.experiments.flops import forward_flops, pairs_flops
from fewstep.experiments.run import read_spec
from fewstep.experiments.rundir import SweepDirectory
from fewstep.experiments.teacher import teacher_directory
from fewstep.sweeps.estimate import speed_of

EQUAL = ("steps", "images", "flops", "seconds")
FIELDS = ("equal", "as", "amount", "teacher")
WORDS = {"steps": "training steps", "images": "images", "flops": "FLOPs", "seconds": "seconds"}


@dataclass(frozen=True)
class Budget:
    """``equal``: what all runs spend the same of. ``amount``: how much, else what ``like`` does.

    ``like``: labels by axis. ``teacher``: whether a student's teachers count.
    """

    equal: str
    like: Mapping[str, str] = field(default_factory=dict)
    amount: float | None = None
    teacher: bool = True

    def describe(self, total: float, but: Sequence[str] = ()) -> str:
        """As captions tell it; ``but``: values of axes that keep steps of their own."""
        beside = "a student's with its teachers'" if self.teacher else "teachers' not counted"
        told = f"each run trains for {total:,.6g} {WORDS[self.equal]}, {beside}"
        return f"{told} ({', '.join(but)} apart)" if but else told


def read_budget(source: str, spec: Any, labels: Mapping[str, Sequence[str]]) -> Budget | None:
    """The field ``budget`` of the sweep file ``source``; ``labels``: of its axes' values.

    Raises:
        UserError: an unknown field or axis, or a bad value.
    """
    if spec is None:
        return None
    where = f"sweep {source}: budget"
    told = {"equal": spec} if isinstance(spec, str) else spec
    if not isinstance(told, dict) or "equal" not in told:
        raise UserError(f"{where} must be one of {', '.join(EQUAL)}, or a mapping with equal:")
    for name in told:
        if name not in FIELDS:
            raise unknown(f"field of {where.removeprefix('sweep ')}", name, FIELDS)
    check_choice(f"budget of sweep {source}", told["equal"], EQUAL)
    like = told.get("as") or {}
    if not isinstance(like, dict):
        raise UserError(f"{where}.as must be a mapping of axes to their values, got {like!r}")
    for axis, label in like.items():
        if axis not in labels:
            raise unknown(f"axis in {where.removeprefix('sweep ')}.as", axis, labels)
        if str(label) not in labels[axis]:
            raise unknown(f"value of axis {axis} in {where}.as", str(label), labels[axis])
    amount, teacher = told.get("amount"), told.get("teacher", True)
    if amount is not None:
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise UserError(f"{where}.amount must be a number, got {amount!r}")
        check_range(f"{where}.amount", amount, 0, open_low=True)
        if like:
            raise UserError(f"{where} is either an amount or as another run, not both")
    if not isinstance(teacher, bool):
        raise UserError(f"{where}.teacher must be true or false, got {teacher!r}")
    if told["equal"] == "seconds" and amount is None:
        raise UserError(f"{where} of seconds needs an amount:")
    return Budget(told["equal"], {a: str(v) for a, v in like.items()}, amount, teacher)


class Accounts:
    """What runs spend, in the unit of a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.known: dict[str, RunConfig] = {}  # by the path a teacher is named with
        self.speeds: dict[str, float] = {}  # images a second, by objective

    def steps(self, config: RunConfig, total: float) -> int:
        """How many steps of ``config`` a budget of ``total`` pays for.

        Raises:
            UserError: none, after its teacher; or a cost that is not known.
        """
        before = self.beforehand(config)
        steps = math.floor((total - before) / self.step(config) * (1 + 1e-12))
        if steps < 1:
            what, name = WORDS[self.budget.equal], config.values["objective"]["name"]
            raise UserError(
                f"a budget of {total:,.6g} {what} leaves no training step for {name}: what comes "
                f"before it takes {before:,.6g} (give its teacher a value of the axis with fewer "
                f"training.steps, or set budget.teacher to false)"
            )
        return steps

    def spent(self, config: RunConfig) -> float:
        """By the whole run, and by its teachers where they count."""
        return config.training.steps * self.step(config) + self.beforehand(config)

    def step(self, config: RunConfig) -> float:
        """By a training step."""
        equal, rows = self.budget.equal, config.training.batch_size
        if equal == "steps":
            return 1.0
        if equal == "images":
            return float(rows)
        if equal == "seconds":
            return rows / self._speed(config)
        cost, name = config.objective.step_cost(), config.values["objective"]["name"]
        if cost is None:
            raise UserError(
                f"budget of flops: objective {name!r} does not state the cost of its step "
                f"(Objective.step_cost)"
            )
        return rows * cost * 3 * _known(forward_flops(config), config)  # forward, and twice back

    def beforehand(self, config: RunConfig) -> float:
        """Before the run's first step: its teachers' training, and pairs drawn from them."""
        if config.values.get("teacher") is None or not self.budget.teacher:
            return 0.0
        teacher = self._teacher(config)
        spent = self.spent(teacher)
        if config.objective.needs_pairs and self.budget.equal == "flops":
            spent += _known(pairs_flops(config, teacher), teacher)
        elif config.objective.needs_pairs and self.budget.equal == "seconds":
            name = config.values["objective"]["name"]
            raise UserError(f"budget of seconds: nobody knows how long {name} draws its pairs")
        return spent

    def _teacher(self, config: RunConfig) -> RunConfig:
        told = str(config.values["teacher"])
        if told not in self.known:
            directory = teacher_directory(config)
            found = None if directory is None else read_spec(directory)
            if found is None:
                raise UserError(f"no run at {told}, which is to be a teacher")
            self.known[told] = found
        return self.known[told]

    def _speed(self, config: RunConfig) -> float:
        label = speed_label(config)
        if label not in self.speeds:
            place = SweepDirectory(Path(config.values["runs"]) / config.values["sweep"])
            kept = ((place.plan() or {}).get("budget") or {}).get("images_per_second", {})
            speed = kept.get(label) or speed_of(config)
            if speed is None:
                name, root = config.values["objective"]["name"], config.values["runs"]
                raise UserError(
                    f"budget of seconds: the speed of {name!r} on this backbone and data is not "
                    f"known; train it once for some hundred steps "
                    f"(fewstep train objective={name} ... training.steps=300 runs={root})"
                )
            self.speeds[label] = speed
        return self.speeds[label]


def speed_label(config: RunConfig) -> str:
    """Under which sweep.json keeps the speed of such runs."""
    values = config.values
    rows = config.training.batch_size
    return f"{values['objective']['name']} {values['backbone']['name']} {rows}"


def _known(flops: float | None, config: RunConfig) -> float:
    if flops is None:
        name = config.values["backbone"]["name"]
        raise UserError(f"budget of flops: backbone {name!r} cannot be built of shapes alone")
    return flops
