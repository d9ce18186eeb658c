"""The state of sweeps, read from their run directories; needs no torch and starts nothing."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from fewstep.deprecation import renamed
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.store.data_record import describe
from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.lease import Attempt, live_lease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory, was_asked

STATES = (
    "done", "running", "queued", "interrupted", "failed", "cancelled", "stopped", "new",
    "unreadable",
)  # fmt: skip
"""Stopped: ended early by a search algorithm, which is no failure. Unreadable: one of its files is
damaged."""


@dataclass(frozen=True)
class RunStatus:
    """The state of one run, from its files.

    Attributes:
        state: one of ``STATES``. node: where it runs, or ran last. restarts: attempts after the
            first until its result. rate: steps per second. left: seconds left in its phase.
        note: why it waits, else the reason of a failure, else which file is corrupt.
        values: of ``metric`` (its label), by steps. data: which it is trained on. first_weights: of
            a run with a teacher, whose weights it began with.
    """

    key: str
    title: str
    seed: int
    choices: dict[str, str]
    state: str
    step: int = 0
    steps: int = 0
    rate: float | None = None
    values: dict[int, float] = field(default_factory=dict)
    note: str = ""
    node: str = ""
    restarts: int = 0
    left: float | None = None
    phase: str = ""
    metric: str = ""
    data: str = ""
    first_weights: str = ""


def run_status(
    run: RunDirectory, member: Json | None = None, waits: str | None = None
) -> RunStatus:
    """The state of one run; ``member``: its entry in sweep.json; ``waits``: why it is queued."""
    spec = run.spec() or {}
    config = spec.get("config", {})
    steps = int(config.get("training", {}).get("steps", 0))
    result, failure, progress = run.result(), run.failure() or {}, run.progress() or {}
    attempt = None if result and not failure else live_lease(run)
    attempts = run.attempts()
    last = attempts[-1] if attempts else {}
    job, host = (attempt.job, attempt.host) if attempt else (last.get("job"), last.get("host", ""))
    before = sum(1 for _ in takewhile(lambda a: a.get("ended") != "done", attempts))
    state = _state(run, attempt, failure, waits)
    shown = _main_cells(run, config)
    values = {record["cell"]["steps"]: record["value"] for record in shown}
    step = steps if result else _step(run, state, steps, progress, failure)
    if attempt is None and result is None:
        step = max(step, run.last_step())  # saved when it stopped: progress.json is older
    phase, speed = progress.get("phase", ""), progress.get("rate")
    rate = result["steps_per_second"] if result else speed if phase == "train" else None
    left = progress.get("total", 0) - progress.get("done", 0)
    note = f"{failure['class']}: {failure['message']}" if failure and result is None else ""
    return RunStatus(
        key=run.key,
        title=str(spec.get("title") or (member or {}).get("title", "?")),
        seed=int(config.get("seed", (member or {}).get("seed", 0))),
        choices=dict((member or {}).get("choices", {})),
        state=state,
        step=int(step),
        steps=steps,
        rate=rate,
        values=dict(sorted(values.items())),
        metric=shown[0]["metric"]["label"] if shown else "",
        note=waits if state == "queued" and waits else note,
        node=str((job or {}).get("node", host)),
        restarts=max(0, min(before, len(attempts) - 1)),  # later attempts only added cells
        left=left / speed if state == "running" and speed else None,
        phase=phase if state == "running" else "",
        data=f"{data['name']} {describe(data)}" if (data := run.data()) else "",
        first_weights=_first_weights(run) if config.get("teacher") and step else "",
    )


def _first_weights(run: RunDirectory) -> str:
    if (record := run.first_weights()) is not None:
        return str(record["title"])
    # fewstep 0.2 recorded nothing, and might have taken the teacher's
    return "random" if "initialised" in (run.result() or {}) else "not recorded"


def _main_cells(run: RunDirectory, config: Json) -> list[Json]:
    """The cells of the last request, else of the run's settings, that the table shows."""
    request, cells = run.request() or {}, run.cells().values()
    for settings in (request.get("evaluation"), config.get("evaluation")):
        if shown := [c for c in cells if _is_main(c, settings or {}, request, config)]:
            return shown
    return []


def _step(run: RunDirectory, state: str, steps: int, progress: Json, failure: Json) -> int:
    """The step that an unfinished run has reached, as its process recorded it."""
    if progress.get("phase") == "evaluate":
        return steps
    step = int(progress.get("done", 0)) if progress.get("phase") == "train" else 0
    if state == "stopped":
        return int((run.stopped() or {}).get("step", step))
    return step if failure.get("step") is None else int(failure["step"])


def _is_main(record: Json, settings: Json, request: Json, config: Json) -> bool:
    """Whether the table shows a cell: of the first metric and sampler, otherwise defaults."""
    cell, evaluation = record["cell"], Evaluation(**settings)
    metric = evaluation.metric_requests()[0]
    own = {**config.get("objective", {}), **request.get("sampler", {})}
    own.update(*evaluation.samplers[:1])
    sampler = cell.get("sampler") or {}
    return (
        (cell["weights"], cell["guidance"], cell.get("sample_set", 0)) == ("ema", 1, 0)
        and cell.get("at_step") is None
        and ("asked" not in record or was_asked(record, metric))
        and all(own.get(name, value) == value for name, value in sampler.items())
    )


def _state(run: RunDirectory, attempt: Attempt | None, failure: Json, waits: str | None) -> str:
    state: str = run.status()
    if attempt is not None and "suspended" not in (waits or ""):
        return "running"
    if state == "done":
        return state
    if waits is not None and not run.cancel.exists():  # a job with other runs skips cancelled ones
        return "queued"
    if state == "failed":
        return failed_or_cancelled(failure)
    return "interrupted" if state == "running" else state


def failed_or_cancelled(failure: Json) -> str:
    """The state of a run with such a failure.json."""
    return "cancelled" if failure.get("class") == "cancelled" else "failed"


def sweep_status(
    sweep: SweepDirectory, waits: Mapping[str, str] = {}, ended: Mapping[str, str] = {}
) -> list[RunStatus]:
    """The states of a sweep's members, in its order.

    By key: ``waits``: why some are queued; ``ended``: the failure class of some whose job ended.
    """
    members = {m["key"]: m for m in (sweep.plan() or {"runs": []})["runs"]}
    states = [
        _status_or_error(run, members.get(run.key), waits.get(run.key)) for run in sweep.runs()
    ]
    return [_as_ended(state, ended.get(state.key)) for state in states]


def _as_ended(run: RunStatus, kind: str | None) -> RunStatus:
    """``run``, failed where its job was and a full disk had no room for failure.json."""
    if kind is None or run.state not in ("new", "interrupted"):
        return run
    state = failed_or_cancelled({"class": kind})
    return replace(run, state=state, note=f"{kind}: the failure could not be written")


def _status_or_error(run: RunDirectory, member: Json | None, waits: str | None) -> RunStatus:
    """``run_status``; a file that cannot be read is reported, and hides no other run."""
    try:
        return run_status(run, member, waits)
    except (CorruptFile, OSError) as error:
        about = {"title": "?", "seed": 0, "choices": {}, **(member or {})}
        named = {name: about[name] for name in ("title", "seed", "choices")}
        return RunStatus(run.key, **named, state="unreadable", note=str(error))


def orphaned_runs(sweep: SweepDirectory, waits: Collection[str] = ()) -> list[RunDirectory]:
    """Runs that are no longer in the sweep (its file was changed), but running or queued."""
    claimed = {file.parent.name for file in sweep.path.glob("*/claim.json")}
    members = {run.key for run in sweep.runs()}
    others = [RunDirectory(sweep.path / key) for key in sorted({*waits, *claimed} - members)]
    return [run for run in others if run.key in waits or is_busy(run)]


def counts(runs: list[RunStatus]) -> dict[str, int]:
    """Runs by state."""
    return dict(Counter(run.state for run in runs))


def is_busy(run: RunDirectory) -> bool:
    """Whether some process has the run."""
    return live_lease(run) is not None


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"left_over": "orphaned_runs"})
