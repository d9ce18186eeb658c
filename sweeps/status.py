"""How far sweeps are, read from their run directories; needs no torch and starts nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fewstep.experiments.claim import at_work
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory


@dataclass(frozen=True)
class RunStatus:
    """One run, as told by its files.

    ``state``: new | running | interrupted | failed | done. ``note``: the reason of a failure.
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


def run_status(run: RunDirectory, member: Json | None = None) -> RunStatus:
    """Read one run; ``member`` is its entry in sweep.json, if there is one."""
    spec = run.spec() or {}
    config = spec.get("config", {})
    steps = int(config.get("training", {}).get("steps", 0))
    result, failure, progress = run.result(), run.failure() or {}, run.progress() or {}
    state: str = run.status()
    if is_busy(run):
        state = "running"
    elif state == "running":
        state = "interrupted"
    step = progress.get("done", 0) if progress.get("phase") == "train" else 0
    if result is not None or progress.get("phase") == "evaluate":
        step = steps
    elif failure.get("step") is not None:
        step = failure["step"]
    values = {
        cell["cell"]["steps"]: cell["value"]
        for cell in run.cells().values()
        if cell["cell"]["weights"] == "ema" and cell["cell"]["guidance"] == 1
    }
    return RunStatus(
        key=run.key,
        title=str(spec.get("title") or (member or {}).get("title", "?")),
        seed=int(config.get("seed", (member or {}).get("seed", 0))),
        choices=dict((member or {}).get("choices", {})),
        state=state,
        step=int(step),
        steps=steps,
        rate=result["steps_per_second"] if result else progress.get("rate"),
        values=dict(sorted(values.items())),
        note=f"{failure['class']}: {failure['message']}" if failure and result is None else "",
    )


def sweep_status(sweep: SweepDirectory) -> list[RunStatus]:
    """All members of a sweep, in its order."""
    members = {m["key"]: m for m in (sweep.plan() or {"runs": []})["runs"]}
    return [run_status(run, members.get(run.key)) for run in sweep.runs()]


def counts(runs: list[RunStatus]) -> dict[str, int]:
    """Runs by state."""
    return dict(Counter(run.state for run in runs))


def is_busy(run: RunDirectory) -> bool:
    """Whether some process is at work on the run."""
    return at_work(run) is not None
