"""Search: Optuna proposes settings, each of which becomes a run like any other.

Proposals are made in batches, each from the scores of all batches before, in the order in which
they were proposed. So the n-th proposal depends on the seed and on scores alone, and not on how
many runs went on at once or on when they ended. To resume a search is to make it again: it comes by
the same settings, finds their runs, and reads their scores. Nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from fewstep.errors import UserError
from fewstep.experiments import failures
from fewstep.experiments.run import prepare
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, write_json
from fewstep.experiments.settings import Evaluation
from fewstep.sweeps.axes import Choice, Combination, facts
from fewstep.sweeps.plan import entry
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.ray.trial import scores
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.sweep import Member, Sweep

DIGITS = 4  # of proposed numbers: they are told, typed again, and part of a key


class Suggest:
    """What a space asks for its values; the same name at most once."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def number(self, name: str, low: float, high: float, log: bool = False) -> float:
        """Between ``low`` and ``high``, both included; whole where both are."""
        if isinstance(low, int) and isinstance(high, int):
            return self.trial.suggest_int(name, low, high, log=log)
        value = self.trial.suggest_float(name, low, high, log=log)
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)

    def choice(self, name: str, labels: Sequence[str]) -> str:
        """One of ``labels``."""
        return str(self.trial.suggest_categorical(name, list(labels)))


Space = Callable[[Suggest], Sequence[Member]]
"""Asks for values, and makes members of them: one run for each seed.

It raises UserError for values that do not go together; they are passed over.
"""


def axes_of(sweep: Sweep) -> Space:
    """The space that the axes of a sweep make: its random numbers, and its values as choices."""
    axes = tuple(sweep.axes.values())

    def space(suggest: Suggest) -> Sequence[Member]:
        made: Combination = ()
        for axis in axes:
            choice: Choice | None = None
            if not axis.when.holds(facts(axes, made)):
                pass
            elif axis.draw is not None:
                value = suggest.number(axis.name, axis.draw.low, axis.draw.high, axis.draw.log)
                choice = Choice(str(value), ((axis.name, value),))
            else:
                labels = sweep.chosen.get(axis.name, axis.labels)
                label = labels[0] if len(labels) == 1 else suggest.choice(axis.name, labels)
                choice = axis.choices[axis.labels.index(label)]
            made = (*made, choice)
        return sweep.of(made)

    return space


@dataclass(frozen=True)
class Proposal:
    """One setting, its runs, and Optuna's word for it."""

    trial: optuna.Trial
    runs: tuple[RunDirectory, ...]


class Proposals:
    """The runs of a search, batch by batch.

    Attributes:
        over: whether there will be no more.
        asked: settings proposed so far. resources: what the runs ask for, by key.
    """

    def __init__(self, space: Space, settings: RaySettings, sweep: SweepDirectory) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.settings, self.sweep = space, settings, sweep
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=settings.seed))
        self.batch: list[Proposal] = []
        self.asked, self.over = 0, False
        self.resources: dict[str, Resources] = {}

    def next(self) -> list[RunDirectory] | None:
        """The runs of the next batch that are still to be run; None at the end.

        To be called when all runs of the batch before have come to their end. If one has not (it
        was interrupted), the search is over for now.
        """
        if not all(self._tell(proposal) for proposal in self.batch):
            self.over = True
        self.over |= self.asked >= self.settings.trials
        if self.over:
            return None
        self.batch = [p for _ in range(self._size()) if (p := self._ask()) is not None]
        runs = {run.key: run for proposal in self.batch for run in proposal.runs}
        return [run for run in runs.values() if _to_do(run)]

    def _size(self) -> int:
        return min(self.settings.batch, self.settings.trials - self.asked)

    def _ask(self) -> Proposal | None:
        trial = self.study.ask()
        self.asked += 1
        try:
            members = self.space(Suggest(trial))
        except UserError:
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        runs = tuple(prepare(member.config) for member in members)
        record(self.sweep, members)
        for member in members:
            self.resources[member.config.key] = member.resources
        return Proposal(trial, runs)

    def _tell(self, proposal: Proposal) -> bool:
        """Tell how a proposal did; False if it has not come to its end."""
        states = {run.status() for run in proposal.runs}
        if states - {"done", "failed", "stopped"}:
            return False
        for step, score in self._looks(proposal).items():
            proposal.trial.report(score, step)
        values = [final_score(run, self.settings.metric_steps) for run in proposal.runs]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            self.study.tell(proposal.trial, _mean(known))
        else:
            pruned = "stopped" in states and "failed" not in states
            state = TrialState.PRUNED if pruned else TrialState.FAIL
            self.study.tell(proposal.trial, state=state)
        return True

    def _looks(self, proposal: Proposal) -> dict[int, float]:
        """The mean score at the rungs that all runs of the proposal have come by."""
        found = [scores(run, self.settings.metric_steps) for run in proposal.runs]
        common = set.intersection(*(set(f) for f in found)) if found else set()
        return {step: _mean([f[step] for f in found]) for step in sorted(common)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _to_do(run: RunDirectory) -> bool:
    """Whether a proposed run is to be launched; one that was ended early is not."""
    return run.status() != "stopped" and (run.result() is not None or failures.resumed(run))


def final_score(run: RunDirectory, metric_steps: int) -> float | None:
    """The distance of a finished run at ``metric_steps`` sampling steps; None where there is none.

    EMA weights, no guidance, the first sample set, uniform times, and the metric asked for last.
    """
    request = run.request()
    if request is None or run.result() is None:
        return None
    asked = Evaluation(**request["evaluation"]).asked()[0]
    for record in run.cells().values():
        cell = record["cell"]
        if (
            (cell["steps"], cell["weights"]) == (metric_steps, "ema")
            and (cell["guidance"], cell["sample_set"], cell["times"]) == (1, 0, None)
            and _same(record["asked"], asked)
        ):
            if record.get("better", "lower") != "lower":
                raise UserError(
                    f"a search minimises the first of evaluation.metrics: "
                    f"{record['metric']['name']} cannot be it"
                )
            return float(record["value"])
    return None


def _same(told: Json, asked: Json) -> bool:
    """Whether a cell's metric is the one asked for."""
    optional = ("metric", "reference_file")
    return all(asked.get(name) == value for name, value in told.items()) and all(
        asked.get(name) == told.get(name) for name in optional
    )


def record(sweep: SweepDirectory, members: Sequence[Member]) -> None:
    """Add the members to sweep.json, for status and for the report."""
    plan: Json = sweep.plan() or {"name": sweep.name, "description": "", "axes": [], "runs": []}
    known = {run["key"] for run in plan["runs"]}
    fresh = [
        {**entry(member), "proposed": True} for member in members if member.config.key not in known
    ]
    if fresh:
        write_json(sweep.path / "sweep.json", {**plan, "runs": [*plan["runs"], *fresh]})
