"""The cost tables: what training and sampling take, and what is gained for it."""

from __future__ import annotations

import csv as csv_module
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from fewstep.analysis.costs import Cost, Costs, improvement
from fewstep.analysis.records import Summary
from fewstep.reports import text
from fewstep.reports.tables import exact, latex_float
from fewstep.reports.ticks import short

NONE = "–"
FLOPS = "FLOPs"


@dataclass(frozen=True)
class Table:
    """Plain text: the first column to the left, all others to the right.

    ``values``: what the cells of a row but the first are sorted by.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float, ...], ...]
    note: str


def tables(summary: Summary, costs: Costs) -> tuple[Table, ...]:
    """Training; sampling; gain over the baseline."""
    columns = [c for c in TRAINING if _known(costs, c)]
    several = len(costs.devices) > 1
    on = f" Trained on {' and '.join(costs.devices)}" if costs.devices else ""
    on += ": times on several machines are not compared." if several else "." if on else ""
    steps = [text.in_steps(s) for s in summary.steps]
    taught = any(r.teacher_images_seen > 0 for r in costs.rows)
    others = [r for r in costs.rows if r.method != costs.baseline]
    better = summary.conditions.better
    side = "above" if better == "higher" else "below"
    return (
        Table(
            "Cost of training",
            ("Method", *(c.title for c in columns)),
            tuple((r.method, *(c.shown(r) for c in columns)) for r in costs.rows),
            tuple(tuple(c.value(r) for c in columns) for r in costs.rows),
            f"Means over the runs in the table. Speed: steps a second, against {costs.baseline}."
            + " Totals, of which in parentheses the teacher's." * taught + on,
        ),
        Table(
            "Speed of sampling, images a second",
            ("Method", *steps),
            tuple((r.method, *(_number(r.sampling[s]) for s in summary.steps))
                  for r in costs.rows),
            tuple(tuple(r.sampling[s] for s in summary.steps) for r in costs.rows),
            "With the evaluation's batch size, on the machine that evaluated." + _calls(summary),
        ),
        Table(
            f"{summary.conditions.metric_name or 'Distance'}: percent {side} {costs.baseline}",
            ("Method", *steps),
            tuple((r.method, *(_gain(r, s, better) for s in summary.steps)) for r in others),
            tuple(tuple(_gained(r, s, better) for s in summary.steps) for r in others),
            "Geometric mean over the seeds that both have, paired, with its 95% Student-t interval "
            "on the log scale and the number of pairs; negative where the baseline is better. Each "
            "interval stands for itself: unlike the main table's marks, it is not corrected for "
            "their number.",
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Column:
    """``value``: to sort by. ``shown``: in words."""

    title: str
    value: Callable[[Cost], float]
    shown: Callable[[Cost], str]


def _number(value: float) -> str:
    return text.number(value) if math.isfinite(value) else NONE


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NONE


def _time(seconds: float) -> str:
    """``45 s``, ``12.3 min``, ``5.4 h``."""
    if not math.isfinite(seconds):
        return NONE
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{text.number(seconds / size)} {unit}"
    return f"{text.number(seconds)} s"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return NONE
    return "baseline" if value == 0 else f"{value:+.0f}%".replace("-", "−")


def _total(
    title: str, total: Callable[[Cost], float], share: Callable[[Cost], float],
    form: Callable[[float], str],
) -> Column:  # fmt: skip
    """``51,200 (25,600)``: the sum, and how much of it is the teacher's."""

    def shown(row: Cost) -> str:
        taught = share(row)
        return form(total(row)) + (f" ({form(taught)})" if taught else "")

    return Column(title, total, shown)


def _column(title: str, value: Callable[[Cost], float], form: Callable[[float], str]) -> Column:
    return Column(title, value, lambda row: form(value(row)))


TRAINING = (
    _column("Parameters", lambda r: r.parameters, _count),
    _column("Steps/s", lambda r: r.steps_per_second, _number),
    _column("s/step", lambda r: r.seconds_per_step, _number),
    _column("Speed", lambda r: r.speedup, _percent),
    _total("Images", lambda r: r.total_images_seen, lambda r: r.teacher_images_seen, _count),
    _total("Wall time", lambda r: r.total_train_seconds, lambda r: r.teacher_train_seconds, _time),
    _total("Device-hours", lambda r: r.total_device_hours, lambda r: r.teacher_device_hours,
           _number),
    _column(FLOPS, lambda r: r.flops, lambda flops: short(flops) if math.isfinite(flops) else NONE),
    _column("Peak memory (MiB)", lambda r: r.peak_memory_bytes / 2**20, _count),
)  # fmt: skip


def _known(costs: Costs, column: Column) -> bool:
    return column.title != FLOPS or any(math.isfinite(r.flops) for r in costs.rows)


def _gain(row: Cost, steps: int, better: str | None) -> str:
    ratio = row.gain[steps]
    if ratio is None:
        return NONE
    middle, low, high = improvement(ratio, better)
    interval = f" [{_whole(low)}, {_whole(high)}]" if ratio.n > 1 else ""
    return f"{_whole(middle)}{interval} ({ratio.n})"


def _gained(row: Cost, steps: int, better: str | None) -> float:
    ratio = row.gain[steps]
    return math.nan if ratio is None else improvement(ratio, better)[0]


def _whole(value: float) -> str:
    return f"{round(value)}".replace("-", "−")


def _calls(summary: Summary) -> str:
    """Methods whose steps are not one network call each."""
    odd = [m for m in summary.methods
           if any(summary.cells[m, s].nfe not in (None, s) for s in summary.steps)]  # fmt: skip
    return f" {', '.join(odd)}: several network calls a step (see the table of distances)." * bool(
        odd
    )


def markdown(summary: Summary, costs: Costs) -> str:
    """One after the other, each with its note."""
    parts = []
    for table in tables(summary, costs):
        align = "-" + ">" * (len(table.header) - 1)
        shown = text.markdown_table(table.header, table.rows, align)
        parts += [f"**{text.markdown(table.title)}**", shown, text.markdown(table.note)]
    return "\n\n".join(parts) + "\n"


def latex(summary: Summary, costs: Costs) -> str:
    """Three ``table`` floats to be \\input; their document needs ``\\usepackage{booktabs}``."""
    lines = [r"% \usepackage{booktabs}"]
    for table in tables(summary, costs):
        lines += latex_float(f"{table.title}. {table.note}", table.header, table.rows)
    return "\n".join([*lines, ""])


CSV_COLUMNS = (
    "method", "baseline", "runs", "parameters", "train_steps", "steps_per_second",
    "seconds_per_step", "speedup_percent", "images_seen", "teacher_images_seen",
    "total_images_seen", "train_seconds", "total_train_seconds", "device_hours",
    "teacher_device_hours", "total_device_hours", "flops", "peak_memory_bytes", "steps",
    "sample_images_per_second", "improvement_percent", "improvement_low", "improvement_high",
)  # fmt: skip


def csv(summary: Summary, costs: Costs) -> str:
    """Tidy, at full precision: a line per method x steps; empty for what is not known."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    better = summary.conditions.better
    for row in costs.rows:
        known = [getattr(row, name.removesuffix("_percent")) for name in CSV_COLUMNS[2:18]]
        for steps in summary.steps:
            ratio = row.gain[steps]
            gained = (math.nan,) * 3 if ratio is None else improvement(ratio, better)
            measured = [*known, steps, row.sampling[steps], *gained]
            writer.writerow([row.method, costs.baseline, *map(exact, measured)])
    return file.getvalue()
