"""The plan of a sweep: the state of each run, and what a launch would run."""

import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fewstep._version import __version__
from fewstep.errors import UserError
from fewstep.errors import located as in_front
from fewstep.experiments.config.data_location import located
from fewstep.experiments.config.earlier_defaults import DEFAULTS
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.cost.disk import DiskUse, cache_bytes, disk_use
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.evaluation.evaluate import cells_lacking, check_weights_kept
from fewstep.experiments.run import directory_of, prepare, read_spec
from fewstep.experiments.store.data_record import check_data
from fewstep.experiments.store.json_files import CorruptFile, write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.store.source_hash import recorded_sources
from fewstep.experiments.validation import Missing, check
from fewstep.files import relative_to
from fewstep.sweeps.cpu_threads import cores, threads
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.definition.sweep import Sweep
from fewstep.sweeps.estimate import Estimate, Fallback, estimate
from fewstep.sweeps.flop_time import FlopTime, Unknown, flop_time
from fewstep.sweeps.launcher import LaunchRequest
from fewstep.sweeps.recipes import recipe_record
from fewstep.sweeps.status import failed_or_cancelled, is_busy

STATES = (
    "new", "interrupted", "failed", "cancelled", "cells", "stale", "running", "stopped", "cached",
    "unreadable",
)  # fmt: skip
"""Not begun; begun; failed; cancelled; trained, but cells are missing; done by an older source;
running; ended early by a search algorithm; done; one of its files is damaged."""


@dataclass(frozen=True)
class Planned:
    """A member, its directory, its state (one of ``STATES``), and which file is damaged."""

    member: Member
    directory: RunDirectory
    state: str
    note: str = ""

    @property
    def to_do(self) -> bool:
        """Whether a launch runs it. Stale results are reported, and kept.

        A running one is launched too: the launcher waits until its process has released it. One
        that was ended early is not (see ``experiments.early_stopping.continue_stopped``).
        """
        return self.state not in ("cached", "stale", "stopped", "unreadable")


@dataclass(frozen=True)
class Plan:
    """The chosen runs of a sweep, in its order.

    Attributes:
        datasets: of the runs to do, by key, if the plan is only looked at.
        missing: why data sets could not be loaded, of which there are the shapes alone.
        unmeasured: why runs could not be measured.
    """

    sweep: Sweep
    runs: tuple[Planned, ...]
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()

    @property
    def directory(self) -> SweepDirectory:
        return SweepDirectory(self.runs[0].directory.path.parent)

    def counts(self) -> dict[str, int]:
        counter = Counter(run.state for run in self.runs)
        return {state: counter[state] for state in STATES}

    @cached_property
    def estimate(self) -> Estimate:
        """How long the runs to do will take, as finished runs tell; computed on first use."""
        return self._estimate(None)

    @cached_property
    def full_estimate(self) -> Estimate:
        """As ``estimate``, from FLOPs where no finished run tells it; of a plan with data sets."""
        return self._estimate(self._flop_time)

    def _estimate(self, fallback: Fallback | None) -> Estimate:
        runs = [(run.member, run.directory) for run in self.runs if run.to_do]
        return estimate(runs, self.directory.path.parent, fallback)

    def _flop_time(self, member: Member, directory: RunDirectory) -> FlopTime | Unknown:
        share = member.resources.cpus
        if not self.sweep.request.given:  # the local launcher divides the machine
            share = max(share, cores() / len(self.datasets))
        dataset = self.datasets[directory.key]
        return flop_time(
            member.config, directory, member.resources, dataset, threads(share), self._configs
        )

    @cached_property
    def _configs(self) -> dict[str, RunConfig]:
        return {run.directory.key: run.member.config for run in self.runs}

    @property
    def disk_uses(self) -> list[DiskUse | None]:
        """Of each run to do; of a plan with data sets."""
        return [disk_use(self._configs[key], dataset) for key, dataset in self.datasets.items()]

    @property
    def cache_bytes(self) -> int:
        """Of the data sets of the runs to do that are kept in a cache."""
        kept = {id(data): (self._configs[key].data, data) for key, data in self.datasets.items()}
        return sum(cache_bytes(source, dataset) for source, dataset in kept.values())

    @cached_property
    def to_do(self) -> tuple[Planned, ...]:
        """The runs to launch, longest first, so that no long run starts last.

        A teacher comes before its students. Runs of unknown duration come first, in the sweep's
        order.
        """
        return longest_first([run for run in self.runs if run.to_do], self.estimate.seconds)

    def request(
        self, runs: Sequence[Planned], seconds: Mapping[str, float] | None = None
    ) -> LaunchRequest:
        """What a launcher needs to know of ``runs``; ``seconds``: in place of the estimate's."""
        return LaunchRequest(
            self.directory,
            {run.directory.key: run.member.config.values for run in runs},
            {run.directory.key: run.member.resources for run in runs},
            self.sweep,
            self.estimate.seconds if seconds is None else seconds,
        )

    def write(self) -> None:
        """Make the run directories and sweep.json, which lists the sweep's members.

        Members of an earlier plan stay, whatever the command line chooses now, as long as the
        sweep has them. A UserError if the run root cannot be written.
        """
        before = self.directory.plan() or {"runs": []}  # raises before anything is written
        for run in self.runs:
            if run.state != "unreadable":
                prepare(run.member.config)
        planned = {run.directory.key for run in self.runs}
        members = [run.member for run in self.runs]
        if not self.sweep.is_whole:
            members = [
                member
                for member in self.sweep.whole()
                if member.config.key in planned or directory_of(member.config).spec() is not None
            ]
        keys = {member.config.key for member in members}
        # what a search has added stays
        kept = [run for run in before["runs"] if run.get("proposed") and run["key"] not in keys]
        write_json(
            self.directory.path / "sweep.json",
            {
                "fewstep": __version__,
                **({} if self.sweep.is_earlier else {"defaults": DEFAULTS}),
                "name": self.sweep.name,
                "description": self.sweep.description,
                "axes": list(self.sweep.axes),
                **({} if self.sweep.budget is None else {"budget": self.sweep.budget_record}),
                **({} if self.sweep.recipe is None else {"recipe": recipe_record(self.sweep)}),
                "runs": [*(member.entry() for member in members), *kept],
            },
        )


def plan(sweep: Sweep, view: bool = False) -> Plan:
    """Read the state of every member of the sweep; writes nothing.

    ``view``: it is only looked at. It then keeps its data sets, and does with the shapes alone of
    those that are missing, where they are known.

    Raises ``UserError``: a bad setting in any of them, missing or unsuitable data, or a directory
    of another configuration.
    """
    runs = []
    for member in sweep.members():
        directory = directory_of(member.config)
        try:
            if directory.path.is_dir() and (directory.path / "spec.json").exists():
                read_spec(directory)
                directory.data()
            runs.append(Planned(member, directory, _state(member, directory)))
        except (CorruptFile, OSError) as error:  # the others can start
            runs.append(Planned(member, directory, "unreadable", str(error)))
    if not runs:
        raise UserError(f"sweep {sweep.name} has no runs")
    readable = [run for run in runs if run.state != "unreadable"]
    datasets: dict[str, Dataset] = {}
    missing = Missing()
    if readable:
        with relative_to(readable[0].directory.made_in()):
            datasets = check_runs(sweep, readable, missing if view else None)
    reasons = tuple(dict.fromkeys(missing.measures))
    datasets = datasets if view else {}
    return Plan(sweep, tuple(runs), datasets, tuple(missing.data.values()), reasons)


def check_runs(
    sweep: Sweep, runs: Sequence[Planned], missing: Missing | None = None
) -> dict[str, Dataset]:
    """Raise ``UserError`` unless what is to do can be done, on the data of what was done.

    Returns the data sets of the runs to do, by key. ``missing``: as in ``validation.check``.
    """
    to_do = {r.directory.key: located(r.member.config, r.directory) for r in runs if r.to_do}
    for planned in runs:
        if planned.to_do:
            check_weights_kept(planned.member.config, planned.directory)
    loaded = check(to_do.values(), to_do, missing)
    placeholders = missing.data if missing else {}
    there = {source: data for source, data in loaded.items() if source not in placeholders}
    records = {source: data_record(dataset) for source, dataset in there.items()}
    # wherever they lie: runs whose settings name the same data must be of the same
    named = {_which_data(config): config.data for config in to_do.values()}
    for run in _members(runs) if records else ():
        try:
            spec, known = run.spec(), run.data()
            source = named.get(_which_data(RunConfig(spec["config"]))) if spec else None
        except (UserError, OSError, LookupError):  # a file of another form: it is named elsewhere
            continue
        if known is not None and source in records:
            with in_front(f"sweep {sweep.name}"):
                check_data(run, records[source], getattr(source, "root", None))
    return {key: loaded[config.data] for key, config in to_do.items()}


def _which_data(config: RunConfig) -> str:
    return json.dumps(config.which_data(), default=str, sort_keys=True)


def _members(runs: Sequence[Planned]) -> list[RunDirectory]:
    """The directories of ``runs``, and of what the sweep has beside them."""
    sweep = SweepDirectory(runs[0].directory.path.parent)
    with contextlib.suppress(CorruptFile, OSError):  # it is named elsewhere
        others = {run.key: run for run in sweep.runs()}
        return list({**others, **{r.directory.key: r.directory for r in runs}}.values())
    return [r.directory for r in runs]


def longest_first(runs: Sequence[Planned], seconds: Mapping[str, float]) -> tuple[Planned, ...]:
    """``runs`` by their duration and that of their students; teachers before students."""
    known = {run.directory.key: run for run in runs}
    students: defaultdict[str | None, list[str]] = defaultdict(list)
    for key, run in known.items():
        students[run.member.teacher].append(key)

    def total(key: str) -> float:
        """Until the last of its students is done."""
        return seconds.get(key, math.inf) + max(map(total, students[key]), default=0.0)

    ordered: dict[str, Planned] = {}

    def add(key: str) -> None:
        teacher = known[key].member.teacher
        if teacher in known and teacher not in ordered:
            add(teacher)
        ordered[key] = known[key]

    for key in sorted(known, key=total, reverse=True):  # stable: ties keep their order
        add(key)
    return tuple(ordered.values())


def _state(member: Member, directory: RunDirectory) -> str:
    result = directory.result()
    state: str = directory.status()
    if result is None and state == "failed":
        state = failed_or_cancelled(directory.failure() or {})
    elif result is None:
        state = "interrupted" if state == "running" else state
    elif cells_lacking(member.config, directory):
        state = "cells"
    else:
        made_by, config = result["provenance"], member.config
        code = recorded_sources(config.objective, config.backbone, config.optimiser)
        # version 0.2 recorded no optimiser's
        same = all(made_by[name] == source for name, source in code.items() if name in made_by)
        return "cached" if same else "stale"
    return "running" if is_busy(directory) else state
