"""The cost tables: what training and sampling take, and what is gained for it."""

import math
from collections.abc import Callable

from fewstep.analysis.costs import Cost, Costs, improvement
from fewstep.analysis.spikes import SPIKED
from fewstep.analysis.summary_types import Summary
from fewstep.reports.content import formatting
from fewstep.reports.content.formatting import exact
from fewstep.reports.figures.axis_ticks import short
from fewstep.reports.tables import plain

NONE = "–"


def tables(summary: Summary, costs: Costs) -> tuple[plain.Table, ...]:
    """Training; its stability; sampling; gain over the baseline."""
    rows, steps, better = costs.rows, summary.steps, summary.conditions.better
    others = [row for row in rows if row.method != costs.baseline]
    counted = any(math.isfinite(row.flops) for row in rows)
    columns = [column for column in TRAINING if counted or column[1] != "flops"]
    by_steps = ("Method", *map(formatting.in_steps, steps))
    side = "above" if better == "higher" else "below"
    return (
        plain.Table(
            "Cost of training",
            ("Method", *(title for title, _, _ in columns)),
            [(row.method, *(_shown(row, name, form) for _, name, form in columns)) for row in rows],
            _training_note(costs),
            [[getattr(row, name) for _, name, _ in columns] for row in rows],
        ),
        plain.Table(
            "Stability of training",
            ("Method", "Runs", "Diverged", "Spiked", "Share"),
            [(row.method, str(row.ended), str(row.diverged), str(row.spiked),
              _known(_unstable(row), "{:.0%}".format)) for row in rows],
            STABILITY,
            [[row.ended, row.diverged, row.spiked, _unstable(row)] for row in rows],
        ),
        plain.Table(
            "Speed of sampling, images a second",
            by_steps,
            [(row.method, *(_known(row.sampling[s], formatting.number) for s in steps))
             for row in rows],
            "With the evaluation's batch size, on the machine that evaluated." + _calls(summary),
            [[row.sampling[s] for s in steps] for row in rows],
        ),
        plain.Table(
            f"{summary.conditions.metric_name or 'Distance'}: percent {side} {costs.baseline}",
            by_steps,
            [(row.method, *(_gain(row, s, better) for s in steps)) for row in others],
            "Geometric mean over the seeds that both have, paired, with its 95% Student-t interval "
            "on the log scale and the number of pairs; negative where the baseline is better. Each "
            "interval stands for itself: unlike the main table's marks, it is not corrected for "
            "their number.",
            [[_improvement(row, s, better)[0] for s in steps] for row in others],
        ),
    )  # fmt: skip


STABILITY = (
    "Runs trained to the end or diverged. Diverged: the loss or its gradient was no number any "
    "more. "
    f"Spiked: these, and runs with {SPIKED}. Share: of spiked runs."
)


def _unstable(row: Cost) -> float:
    return row.spiked / row.ended if row.ended else math.nan


def _time(seconds: float) -> str:
    """``45 s``, ``12.3 min``, ``5.4 h``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{formatting.number(seconds / size)} {unit}"
    return f"{formatting.number(seconds)} s"


def _percent(value: float) -> str:
    return "baseline" if value == 0 else f"{value:+.0f}%".replace("-", "−")


TRAINING: tuple[tuple[str, str, Callable[[float], str]], ...] = (  # title, attribute, format
    ("Parameters", "parameters", "{:,.0f}".format),
    ("Steps/s", "steps_per_second", formatting.number),
    ("s/step", "seconds_per_step", formatting.number),
    ("Speed", "speedup", _percent),
    ("Images", "total_images_seen", "{:,.0f}".format),
    ("Wall time", "total_train_seconds", _time),
    ("Device-hours", "total_device_hours", formatting.number),
    ("FLOPs", "flops", short),
    ("Peak memory (MiB)", "peak_memory_bytes", lambda size: f"{size / 2**20:,.0f}"),
)


def _known(value: float, form: Callable[[float], str]) -> str:
    return form(value) if math.isfinite(value) else NONE


def _shown(row: Cost, name: str, form: Callable[[float], str]) -> str:
    """``51,200 (25,600)``: a total, and how much of it is the teacher's."""
    shown = _known(getattr(row, name), form)
    taught = getattr(row, name.replace("total", "teacher")) if name.startswith("total") else 0
    return f"{shown} ({_known(taught, form)})" if taught else shown


def _training_note(costs: Costs) -> str:
    note = f"Means over the runs in the table. Speed: steps a second, against {costs.baseline}."
    if any(row.teacher_images_seen > 0 for row in costs.rows):
        note += " Totals, of which in parentheses the teacher's."
    if any(math.isfinite(row.flops) for row in costs.rows):
        note += " FLOPs: the method's, without what is computed again to save memory."
    if costs.devices:
        note += f" Trained on {' and '.join(costs.devices)}"
        several = len(costs.devices) > 1
        note += ": times on several machines are not compared." if several else "."
    return note


def _improvement(row: Cost, steps: int, better: str | None) -> tuple[float, float, float]:
    ratio = row.gain[steps]
    return (math.nan,) * 3 if ratio is None else improvement(ratio, better)


def _gain(row: Cost, steps: int, better: str | None) -> str:
    if (ratio := row.gain[steps]) is None:
        return NONE
    middle, low, high = improvement(ratio, better)
    interval = f" [{round(low)}, {round(high)}]" if ratio.n > 1 else ""
    return f"{round(middle)}{interval} ({ratio.n})".replace("-", "−")


def _calls(summary: Summary) -> str:
    """Methods whose steps are not one network call each."""
    odd = [m for m in summary.methods
           if any(summary.cells[m, s].nfe not in (None, s) for s in summary.steps)]  # fmt: skip
    several = "several network calls a step (see the table of distances)."
    return f" {', '.join(odd)}: {several}" if odd else ""


def markdown(summary: Summary, costs: Costs) -> str:
    """One after the other, each with its note."""
    parts: list[str] = []
    for table in tables(summary, costs):
        title, note = map(formatting.markdown, (table.title, table.note))
        parts += [f"**{title}**", table.markdown(), note]
    return "\n\n".join(parts) + "\n"


def latex(summary: Summary, costs: Costs) -> str:
    """A ``table`` float of each to be \\input; their document needs booktabs and graphicx."""
    return plain.latex(*tables(summary, costs))


CSV_COLUMNS = (
    "method", "baseline", "runs", "parameters", "train_steps", "steps_per_second",
    "seconds_per_step", "speedup_percent", "images_seen", "teacher_images_seen",
    "total_images_seen", "train_seconds", "total_train_seconds", "device_hours",
    "teacher_device_hours", "total_device_hours", "flops", "peak_memory_bytes", "steps",
    "sample_images_per_second", "improvement_percent", "improvement_low", "improvement_high",
    "ended", "diverged", "spiked",
)  # fmt: skip


def csv(summary: Summary, costs: Costs) -> str:
    """Tidy, at full precision: a line per method x steps; empty for what is not known."""
    lines = []
    for row in costs.rows:
        known = [getattr(row, name.removesuffix("_percent")) for name in CSV_COLUMNS[2:18]]
        for steps in summary.steps:
            gained = _improvement(row, steps, summary.conditions.better)
            stable = row.ended, row.diverged, row.spiked
            measured = [*known, steps, row.sampling[steps], *gained, *stable]
            lines.append([row.method, costs.baseline, *map(exact, measured)])
    return formatting.csv_table(CSV_COLUMNS, lines)
