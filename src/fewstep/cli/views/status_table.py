"""The tables of ``fewstep status``."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fewstep.cli.views.console import duration, new_table
from fewstep.errors import counted
from fewstep.sweeps.status import STATES, RunStatus, counts

COLOURS = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "stopped": "magenta",
    "unreadable": "red",
}
ALWAYS = ("done", "running", "interrupted", "failed", "new")
RIGHT = ("seed", "step", "steps/s", "left", "restarts")


def sweeps_table(by_sweep: Mapping[str, Mapping[str, int]]) -> Table:
    """A row per sweep: its number of runs in each state."""
    states = [s for s in STATES if s in ALWAYS or any(s in c for c in by_sweep.values())]
    rows = [
        {"sweep": name, "runs": str(sum(count.values()))}
        | {state: str(count.get(state, 0)) for state in states}
        for name, count in by_sweep.items()
    ]
    return new_table(rows, right=("runs", *states))


def runs_table(runs: Sequence[RunStatus], note: str) -> Group:
    """A row per run, then the runs' notes, ``note`` and the counts."""
    metrics = {run.metric for run in runs if run.metric}
    # values of different metrics are shown with their names
    only = metrics.pop().partition("-")[0] if len(metrics) == 1 else ""
    restarted = any(run.restarts for run in runs)
    rows = []
    for run in runs:
        state = run.state if run.phase in ("", "train") else f"{run.state} ({run.phase})"
        values = [f"{steps}: {digits(value)}" for steps, value in run.values.items()]
        row = {
            "key": run.key,
            "run": Text(" ".join(run.choices.values()) or run.title),
            "seed": str(run.seed),
            "state": Text(state, style=COLOURS.get(run.state, "")),
            "step": f"{run.step}/{run.steps}",
            "steps/s": "" if run.rate is None else f"{run.rate:.1f}",
            "left": "" if run.left is None else duration(run.left),
            f"{only or 'result'} at steps": "  ".join(
                values if only or not run.metric else [run.metric, *values]
            ),
            "node": run.node,
        }
        rows.append({**row, "restarts": str(run.restarts)} if restarted else row)
    notes = [Text(f"{run.key} {run.note}") for run in runs if run.note]
    notes += [Text(note)] if note else []
    notes += [Text(f"data {line}", style="dim") for line in data_lines(runs)]
    if known := Counter(run.first_weights for run in runs if run.first_weights):
        of = "; ".join(f"{name}: {counted(number, 'run')}" for name, number in known.items())
        notes.append(Text(f"first weights of runs with a teacher: {of}", style="dim"))
    return Group(new_table(rows, right=RIGHT), *notes, Text(counts_line(runs), style="dim"))


NOT_RECORDED = "not recorded (data.json is missing, as of fewstep 0.2)"


def data_lines(runs: Sequence[RunStatus]) -> list[str]:
    """Which data the runs are trained on; how many, where they are not the same."""
    versions = Counter(run.data or NOT_RECORDED for run in runs if run.data or run.step)
    if len(versions) < 2 and NOT_RECORDED not in versions:
        return list(versions)
    return [f"{data}: {counted(number, 'run')}" for data, number in versions.items()]


def counts_line(runs: Sequence[RunStatus]) -> str:
    """How many runs are in each state, and their speed."""
    by_state = counts(list(runs))
    text = ", ".join(f"{by_state[s]} {s}" for s in STATES if s in by_state)
    speed = sum(run.rate or 0 for run in runs if run.state == "running")
    return f"{counted(len(runs), 'run')}: {text}" + (f"; {speed:.0f} steps/s" if speed else "")


def digits(value: float) -> str:
    """Three significant digits: a distance may be 0.0057, or 57."""
    if not math.isfinite(value) or abs(value) >= 1e5:
        return f"{value:.3g}"
    decimals = 2 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"
