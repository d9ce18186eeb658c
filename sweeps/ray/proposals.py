"""Search: Optuna proposes settings, each of which becomes a run like any other.

Each batch of proposals depends on the scores of all batches before it, in the order in which they
were proposed. So the n-th proposal depends on the seed and the scores alone, and not on how many
runs were parallel or when they ended. A search that is launched again proposes the same settings,
finds their runs, and reads their scores; nothing else is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from fewstep.errors import UserError
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.run import prepare
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import Json, write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.axes import Choice, Combination, axis_values
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.definition.sweep import Sweep
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.ray.trial import scores

DIGITS = 4  # of proposed numbers: they are shown, typed again, and part of a key


def suggest(trial: optuna.Trial, sweep: Sweep) -> Combination:
    """A combination of the sweep's axes: its random numbers, and its values as choices."""
    combination: Combination = ()
    for axis in sweep.axes.values():
        choice: Choice | None = None
        if not axis.when.holds(axis_values(sweep.axes.values(), combination)):
            pass
        elif axis.draw is not None:
            low, high, log = axis.draw.low, axis.draw.high, axis.draw.log
            if axis.draw.whole:
                value: float = trial.suggest_int(axis.name, int(low), int(high), log=log)
            else:
                value = float(f"{trial.suggest_float(axis.name, low, high, log=log):.{DIGITS}g}")
                value = min(max(value, low), high)
            choice = Choice(str(value), ((axis.name, value),))
        else:
            labels = list(sweep.chosen.get(axis.name, axis.labels))
            label = labels[0] if len(labels) == 1 else trial.suggest_categorical(axis.name, labels)
            choice = axis.choices[axis.labels.index(str(label))]
        combination = (*combination, choice)
    return combination


@dataclass(frozen=True)
class Proposal:
    """One setting, its runs, and Optuna's trial."""

    trial: optuna.Trial
    runs: tuple[RunDirectory, ...]


class Proposals:
    """The runs of a search over the axes of ``sweep``, batch by batch.

    Attributes:
        over: whether there will be no more.
        proposed: settings proposed so far. resources: what the runs ask for, by key.
    """

    def __init__(self, sweep: Sweep, settings: RaySettings, directory: SweepDirectory) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.settings, self.directory = sweep, settings, directory
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=settings.seed))
        self.batch: list[Proposal] = []
        self.proposed, self.over = 0, False
        self.resources: dict[str, Resources] = {}

    def next(self) -> list[RunDirectory] | None:
        """The runs of the next batch that are still to be run; None at the end.

        Call it when all runs of the batch before have ended. If one was interrupted, the search is
        over for now.
        """
        if not all(self._report(proposal) for proposal in self.batch):
            self.over = True
        self.over |= self.proposed >= self.settings.trials
        if self.over:
            return None
        size = min(self.settings.batch, self.settings.trials - self.proposed)
        self.batch = [p for _ in range(size) if (p := self._ask()) is not None]
        runs = {run.key: run for proposal in self.batch for run in proposal.runs}
        return [run for run in runs.values() if _to_do(run)]

    def _ask(self) -> Proposal | None:
        trial = self.study.ask()
        self.proposed += 1
        try:
            members = self.sweep.members_of(suggest(trial, self.sweep))
        except UserError:  # values that cannot be combined
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        runs = tuple(prepare(member.config) for member in members)
        record(self.directory, members)
        self.resources |= {member.config.key: member.resources for member in members}
        return Proposal(trial, runs)

    def _report(self, proposal: Proposal) -> bool:
        """Report the scores of a proposal to Optuna; False if some run has not ended."""
        states = {run.status() for run in proposal.runs}
        if states - {"done", "failed", "stopped"}:
            return False
        for step, score in self._rung_scores(proposal).items():
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

    def _rung_scores(self, proposal: Proposal) -> dict[int, float]:
        """The mean score at the rungs that all runs of the proposal have reached."""
        by_run = [scores(run, self.settings.metric_steps) for run in proposal.runs]
        common = set.intersection(*map(set, by_run)) if by_run else set()
        return {step: _mean([known[step] for known in by_run]) for step in sorted(common)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _to_do(run: RunDirectory) -> bool:
    return run.status() != "stopped" and (
        run.result() is not None or failures.retried_on_launch(run)
    )


def final_score(run: RunDirectory, metric_steps: int) -> float | None:
    """The distance of a finished run at ``metric_steps`` sampling steps; None where there is none.

    EMA weights, no guidance, the first sample set, uniform times, and the first requested metric.
    """
    request = run.request()
    if request is None or run.result() is None:
        return None
    metric = Evaluation(**request["evaluation"]).metric_requests()[0]
    for record in run.cells().values():
        cell = record["cell"]
        if (
            (cell["steps"], cell["weights"]) == (metric_steps, "ema")
            and cell.get("at_step") is None
            and (cell["guidance"], cell["sample_set"], cell["times"]) == (1, 0, None)
            and any(_same(a, metric) for a in (record["asked"], *record.get("asked_also", ())))
        ):
            if record.get("better", "lower") != "lower":
                raise UserError(
                    f"a search minimises the first of evaluation.metrics: "
                    f"{record['metric']['name']} cannot be it"
                )
            return float(record["value"])
    return None


def _same(measured: Json, requested: Json) -> bool:
    """Whether a cell's metric is the requested one."""
    names = (*measured, "metric", "reference_file", "protocol")
    return all(requested.get(name) == measured.get(name) for name in names)


def record(sweep: SweepDirectory, members: Sequence[Member]) -> None:
    """Add the members to sweep.json, for status and for the report."""
    plan: Json = sweep.plan() or {"name": sweep.name, "description": "", "axes": [], "runs": []}
    known = {run["key"] for run in plan["runs"]}
    fresh = [
        {**member.entry(), "proposed": True} for member in members if member.config.key not in known
    ]
    if fresh:
        write_json(sweep.path / "sweep.json", {**plan, "runs": [*plan["runs"], *fresh]})
