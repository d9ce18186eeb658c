"""How far sweeps are, read from their run directories; needs no torch and starts nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile

from fewstep.experiments.claim import Attempt, at_work
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, Unreadable
from fewstep.experiments.settings import Evaluation

STATES = (
    "done", "running", "queued", "interrupted", "failed", "cancelled", "stopped", "new",
    "unreadable",
)  # fmt: skip
"""Stopped: ended early by a search algorithm, which is no failure. Unreadable: a file of it is
damaged."""


@dataclass(frozen=True)
class RunStatus:
    """One run, as told by its files.

    ``state``: one of ``STATES``. ``node``: where it is, or was last, at work. ``restarts``: how
    many attempts there were, after the first, to bring it to its result. ``rate``: steps a second.
    ``left``: seconds that its phase has left. ``note``: why it waits, else the reason of a failure,
    else which file cannot be read. ``values``: of ``metric`` (its label), by steps.
    """

    key: str
    title: str
    seed: int
    choices: dict[str, str]
    state: str
    step: int
    steps: int
    rate: float | None
    values: dict[int, float]
    note: str
    node: str = ""
    restarts: int = 0
    left: float | None = None
    phase: str = ""
    metric: str = ""


def run_status(
    run: RunDirectory, member: Json | None = None, waits: str | None = None
) -> RunStatus:
    """Read one run; ``member``: its entry in sweep.json; ``waits``: it is in a queue, and why."""
    spec = run.spec() or {}
    config = spec.get("config", {})
    steps = int(config.get("training", {}).get("steps", 0))
    result, failure, progress = run.result(), run.failure() or {}, run.progress() or {}
    attempt = None if result and not failure else at_work(run)
    attempts = run.attempts()
    state = _state(run, attempt, failure, waits)
    request = run.request() or {}
    cells = run.cells().values()
    # what was asked for last; where there is nothing of that, what the run was made for
    asked = (request.get("evaluation"), config.get("evaluation"))
    found = ([c for c in cells if _is_main(c, one or {}, request, config)] for one in asked)
    shown = next(filter(None, found), [])
    values = {record["cell"]["steps"]: record["value"] for record in shown}
    step = progress.get("done", 0) if progress.get("phase") == "train" else 0
    if result is not None or progress.get("phase") == "evaluate":
        step = steps
    elif state == "stopped":
        step = (run.stopped() or {}).get("step", step)
    elif failure.get("step") is not None:
        step = failure["step"]
    if attempt is None and result is None:
        step = max(step, run.last_step())  # saved as it was stopped: progress.json is older
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
        node=_node(attempt, attempts),
        restarts=_restarts(attempts),
        left=left / speed if state == "running" and speed else None,
        phase=phase if state == "running" else "",
    )


def _is_main(record: Json, settings: Json, request: Json, config: Json) -> bool:
    """Whether a cell is one that a run is looked at by: of the metric and sampler asked for first,
    and with all else as it is by default.
    """
    cell = record["cell"]
    asked = Evaluation(**settings)
    own = {**config.get("objective", {}), **request.get("sampler", {})}
    for sampler in asked.samplers[:1]:
        own |= sampler
    sampler = cell.get("sampler") or {}
    return (
        (cell["weights"], cell["guidance"], cell.get("sample_set", 0)) == ("ema", 1, 0)
        and record.get("asked", asked.asked()[0]) == asked.asked()[0]
        and all(own.get(name, value) == value for name, value in sampler.items())
    )


def _state(run: RunDirectory, attempt: Attempt | None, failure: Json, waits: str | None) -> str:
    state: str = run.status()
    if attempt is not None:
        return "running"
    if state == "done":
        return state
    if waits is not None and not run.cancel.exists():  # a job that is shared passes over those
        return "queued"
    if state == "failed":
        return failed_or_cancelled(failure)
    return "interrupted" if state == "running" else state


def _restarts(attempts: list[Json]) -> int:
    """Attempts after the first, up to the one that was done: later ones only added cells."""
    before = sum(1 for _ in takewhile(lambda attempt: attempt.get("ended") != "done", attempts))
    return max(0, min(before, len(attempts) - 1))


def failed_or_cancelled(failure: Json) -> str:
    """The state of a run with such a failure.json."""
    return "cancelled" if failure.get("class") == "cancelled" else "failed"


def _node(attempt: Attempt | None, attempts: list[Json]) -> str:
    if attempt is not None:
        return str((attempt.job or {}).get("node", attempt.host))
    if attempts:
        return str((attempts[-1].get("job") or {}).get("node", attempts[-1].get("host", "")))
    return ""


def sweep_status(sweep: SweepDirectory, waits: Mapping[str, str] = {}) -> list[RunStatus]:
    """All members of a sweep, in its order; ``waits``: why some wait in a queue, by key."""
    members = {m["key"]: m for m in (sweep.plan() or {"runs": []})["runs"]}
    return [_told(run, members.get(run.key), waits.get(run.key)) for run in sweep.runs()]


def _told(run: RunDirectory, member: Json | None, waits: str | None) -> RunStatus:
    """``run_status``; a damaged file is told, and hides no other run."""
    try:
        return run_status(run, member, waits)
    except Unreadable as error:
        about = {"title": "?", "seed": 0, "choices": {}, **(member or {})}
        return RunStatus(
            key=run.key,
            title=about["title"],
            seed=about["seed"],
            choices=about["choices"],
            state="unreadable",
            step=0,
            steps=0,
            rate=None,
            values={},
            note=str(error),
        )


def left_over(sweep: SweepDirectory, waits: Collection[str] = ()) -> list[RunDirectory]:
    """Runs that have left the sweep, but not the machines: at work, or waiting in a queue.

    A value was removed from its file, say, or a setting changed, while they were there.
    """
    claimed = {file.parent.name for file in sweep.path.glob("*/claim.json")}
    members = {run.key for run in sweep.runs()}
    left = [RunDirectory(sweep.path / key) for key in sorted({*waits, *claimed} - members)]
    return [run for run in left if run.key in waits or is_busy(run)]


def counts(runs: list[RunStatus]) -> dict[str, int]:
    """Runs by state."""
    return dict(Counter(run.state for run in runs))


def is_busy(run: RunDirectory) -> bool:
    """Whether some process is at work on the run."""
    return at_work(run) is not None
