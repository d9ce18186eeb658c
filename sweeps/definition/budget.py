"""Equal budgets: how many training steps each run of a sweep gets, its teacher's cost included.

FLOPs are those of training steps, as the objectives state them, and of drawing stored pairs
(``experiments/cost/flops.py``). Seconds are those of training, at the speed of finished runs;
sweep.json stores the speeds, so that the plan is reproducible. docs/sweeps.md has the fields.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.cost.flops import pairs_flops, step_flops
from fewstep.experiments.run import read_spec
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.training.teacher import WEAK, config_of, teacher_directory
from fewstep.setting_types import check_type
from fewstep.sweeps.definition.conditions import read_condition
from fewstep.sweeps.throughput import speed_of

FIELDS = ("equal", "as", "amount", "teacher")
WORDS = {"steps": "training steps", "images": "images", "flops": "FLOPs", "seconds": "seconds"}


@dataclass(frozen=True)
class Budget:
    """``equal``: the unit. ``amount``: what each run spends; None: as much as the run ``like``.

    ``like``: labels by axis. ``teacher``: whether a student's teachers count.
    """

    equal: str
    like: Mapping[str, str] = field(default_factory=dict)
    amount: float | None = None
    teacher: bool = True

    def describe(self, total: float, but: Sequence[str] = ()) -> str:
        """For captions; ``but``: values of axes that keep their own steps."""
        beside = "a student's with its teachers'" if self.teacher else "teachers' not counted"
        text = f"each run trains for {total:,.6g} {WORDS[self.equal]}, {beside}"
        return f"{text} (except {', '.join(but)})" if but else text


def read_budget(spec: Any, labels: Mapping[str, Sequence[str]]) -> Budget | None:
    """The field ``budget``, checked; ``labels``: of the values of the sweep's axes."""
    if spec is None:
        return None
    if isinstance(spec, str):
        spec = {"equal": spec}
    if not isinstance(spec, dict) or "equal" not in spec:
        raise UserError(f"budget must be one of {', '.join(WORDS)}, or a mapping with equal:")
    for name in spec:
        check_choice("field of budget", name, FIELDS)
    check_choice("budget", spec["equal"], WORDS)
    like = check_type("budget.as", spec.get("as") or {}, dict[str, str])
    if like:
        read_condition("budget.as", like, labels)
    amount = check_type("budget.amount", spec.get("amount"), float | None)
    teacher = check_type("budget.teacher", spec.get("teacher", True), bool)
    if amount is not None:
        check_range("budget.amount", amount, 0, open_low=True)
        if like:
            raise UserError("budget is either an amount or as another run, not both")
    if spec["equal"] == "seconds" and amount is None:
        raise UserError("budget of seconds needs an amount:")
    return Budget(spec["equal"], like, amount, teacher)


class BudgetAccount:
    """What runs spend, in the unit of a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.known: dict[str, RunConfig] = {}  # by the path of the teacher
        self.speeds: dict[str, float] = {}  # images a second, by objective

    def steps(self, config: RunConfig, total: float) -> int:
        """How many steps of ``config`` a budget of ``total`` pays for; a UserError if none."""
        before = self.before_training(config)
        steps = math.floor((total - before) / self.step(config) * (1 + 1e-12))
        if steps < 1:
            what, name = WORDS[self.budget.equal], config.values["objective"]["name"]
            raise UserError(
                f"a budget of {total:,.6g} {what} leaves no training step for {name}: its "
                f"teachers and pairs take {before:,.6g} (give its teacher fewer "
                f"training.steps in a value of the axis, or set budget.teacher to false)"
            )
        return steps

    def spent(self, config: RunConfig) -> float:
        """By the whole run, and by its teachers where they count."""
        return config.training.steps * self.step(config) + self.before_training(config)

    def step(self, config: RunConfig) -> float:
        """By a training step."""
        equal, rows = self.budget.equal, config.training.batch_size
        if equal == "steps":
            return 1.0
        if equal == "images":
            return float(rows)
        if equal == "seconds":
            return rows / self._speed(config)
        name = config.values["objective"]["name"]
        if config.objective.step_cost() is None:
            raise UserError(
                f"budget of flops: objective {name!r} does not state the cost of its step "
                f"(Objective.step_cost)"
            )
        return _known(step_flops(config), config)

    def before_training(self, config: RunConfig) -> float:
        """Before the run's first step: its teachers' training, and pairs drawn from them."""
        if not self.budget.teacher:
            return 0.0
        runs = self._learned_from(config).values()  # each once, though several may learn from it
        taught = sum(run.training.steps * self.step(run) + self._pairs(run) for run in runs)
        return taught + self._pairs(config)

    def _learned_from(self, config: RunConfig) -> dict[str, RunConfig]:
        """The run's teachers, and theirs, by key."""
        found: dict[str, RunConfig] = {}
        if (path := config.values.get("teacher")) is not None:
            found[Path(path).name] = self._teacher(config)
        if (weak := teacher_directory(config, WEAK)) is not None:
            found[weak.key] = config_of(weak)
        for run in [*found.values()]:
            found |= self._learned_from(run)
        return found

    def _pairs(self, config: RunConfig) -> float:
        if not config.objective.needs_pairs or self.budget.equal not in ("flops", "seconds"):
            return 0.0
        if self.budget.equal == "flops":
            teacher = self._teacher(config)
            return _known(pairs_flops(config, teacher), teacher)
        name = config.values["objective"]["name"]
        raise UserError(f"budget of seconds: how long {name} draws its pairs is unknown")

    def _teacher(self, config: RunConfig) -> RunConfig:
        path = str(config.values["teacher"])
        if path not in self.known:
            directory = teacher_directory(config)
            teacher = None if directory is None else read_spec(directory)
            if teacher is None:
                raise UserError(f"teacher {path!r}: there is no run")
            self.known[path] = teacher
        return self.known[path]

    def _speed(self, config: RunConfig) -> float:
        values = config.values
        name, root = values["objective"]["name"], values["runs"]
        label = f"{name} {values['backbone']['name']} {config.training.batch_size}"
        if label not in self.speeds:
            sweep = SweepDirectory(Path(root) / values["sweep"])
            kept = ((sweep.plan() or {}).get("budget") or {}).get("images_per_second", {})
            if (speed := kept.get(label) or speed_of(config)) is None:
                raise UserError(
                    f"budget of seconds: the speed of {name!r} on this backbone and data is not "
                    f"known; train it once for some hundred steps "
                    f"(fewstep train objective={name} ... training.steps=300 runs={root})"
                )
            self.speeds[label] = speed
        return self.speeds[label]


def _known(flops: float | None, config: RunConfig) -> float:
    if flops is None:
        name = config.values["backbone"]["name"]
        raise UserError(f"budget of flops: backbone {name!r} cannot be built of shapes alone")
    return flops
