"""A comparison of sweeps, or of methods with one: Markdown, LaTeX, CSV, a terminal's table."""

from __future__ import annotations

import csv as csv_module
import io
import math

from rich.table import Table
from rich.text import Text

from fewstep.analysis.comparison import Comparison
from fewstep.analysis.statistics import PairedRatio
from fewstep.reports.captions import budget, measured
from fewstep.reports.tables import latex_float
from fewstep.reports.text import enumerated, in_steps, listed, no_value, number, wrapped
from fewstep.reports.text import markdown as escaped

CSV_COLUMNS = (
    "first", "second", "method", "baseline", "steps", "kind", "estimate", "low", "high", "n",
    "p_value", "p_holm", "told_apart", "underpowered", "seeds", "metric", "metric_id",
)  # fmt: skip


def title(comparison: Comparison) -> str:
    """``a / b``, or the sweep's name."""
    c = comparison
    return c.first if c.one_sweep else f"{c.first} / {c.second}"


def caption(comparison: Comparison) -> str:
    """Plain text: what is divided by what, how it was tested, and where budgets differ."""
    c, (first, second) = comparison, (s.conditions for s in comparison.summaries)
    what = "method / baseline" if c.one_sweep else f"{c.first} / {c.second}"
    side = "above" if first.better == "higher" else "below"
    better = "" if first.better == "neither" else f", {side} 1 the first is better"
    tests = sum(not math.isnan(cell.p_value) for cell in c.cells.values())
    over = "the one comparison" if tests == 1 else f"the {tests} comparisons"
    lines = [
        f"{what}{better}. Geometric mean over seeds of the ratio of each seed, its 95% Student-t "
        "interval, and the number of pairs.",
        f"*: told apart (paired t-test on log ratios, Holm over {over} of this table, "
        f"p ≤ {c.alpha:g})."
        if tests
        else "One pair of seeds tells nothing of the spread: nothing is tested.",
    ]
    if any(not isinstance(cell.paired, PairedRatio) for cell in c.cells.values()):
        lines.append("Δ: mean difference, where a value is not positive.")
    if weak := sorted({cell.paired.n for cell in c.cells.values() if cell.underpowered}):
        few = "one seed is" if weak == [1] else f"{enumerated([str(n) for n in weak])} seeds are"
        lines.append(f"Without *, {few} no sign of equality: underpowered.")
    lines += _protocols(c)
    for name, of in (("training steps", "train_steps"), ("images", "images_seen")):
        a, b = ([f"{v:,}" for v in getattr(x, of)] for x in (first, second))
        if a != b:
            lines.append(
                f"Budgets differ: {enumerated(a)} {name} in {c.first}, {enumerated(b)} in "
                f"{c.second}."
            )
    if only := _alone(c):
        lines.append(only)
    return " ".join(lines)


def _protocols(c: Comparison) -> list[str]:
    """How both were measured: what is common once, then what each has by itself."""
    first, second = map(measured, c.summaries)
    if c.one_sweep:
        return [*first, *budget(c.summaries[0])]
    common = [line for line in first if line in second]
    own = [
        f"{name}: {' '.join(rest)}"
        for name, lines in ((c.first, first), (c.second, second))
        if (rest := [line for line in lines if line not in common])
    ]
    return [*common, *own]


def _alone(c: Comparison) -> str:
    """Seeds without a partner, those of like methods together."""
    of: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (sweep, method), seeds in c.alone().items():
        of.setdefault((sweep, tuple(sorted(seeds))), []).append(method)
    told = [
        f"{listed(seeds)} of {enumerated(methods)}" + ("" if c.one_sweep else f" in {sweep}")
        for (sweep, seeds), methods in of.items()
    ]
    return f"Seeds without a partner are left out: {'; '.join(told)}." if told else ""


def _names(comparison: Comparison) -> list[str]:
    return [a if a == b else f"{a} / {b}" for a, b in comparison.pairs]


def shown(comparison: Comparison, place: tuple[str, str, int]) -> str:
    """``0.83 [0.70, 0.98] (3) *``, or why there is nothing to compare."""
    cell = comparison.cells.get(place)
    if cell is None:
        without = [side for side in comparison.sides(place) if not side.n]
        return no_value(without[0]) if without else "no common seed"
    p = cell.paired
    ratio = isinstance(p, PairedRatio)
    center = p.ratio if isinstance(p, PairedRatio) else p.difference
    value = number(center) if ratio else f"Δ {number(center)}"
    if math.isfinite(p.low):
        value += f" [{number(p.low)}, {number(p.high)}]"
    return f"{value} ({p.n})" + (" *" if cell.distinguished else "")


def _rows(comparison: Comparison) -> list[list[str]]:
    return [
        [name, *(shown(comparison, (a, b, s)) for s in comparison.steps)]
        for name, (a, b) in zip(_names(comparison), comparison.pairs, strict=True)
    ]


def _header(comparison: Comparison) -> list[str]:
    return ["Method", *(in_steps(s) for s in comparison.steps)]


def markdown(comparison: Comparison) -> str:
    """A pipe table under a heading, and the caption below it."""
    rows = [[escaped(value) for value in row] for row in _rows(comparison)]
    align = ["---", *("---:" for _ in comparison.steps)]
    lines = [f"| {' | '.join(row)} |" for row in (_header(comparison), align, *rows)]
    heading = f"# {escaped(title(comparison))}"
    return "\n".join([heading, "", *lines, "", escaped(caption(comparison)), ""])


def latex(comparison: Comparison) -> str:
    """A ``table`` float to be \\input; its document needs ``\\usepackage{booktabs}``."""
    about = f"{title(comparison)}. {caption(comparison)}"
    rows = latex_float(about, _header(comparison), _rows(comparison))
    return "\n".join([r"% \usepackage{booktabs}", *rows, ""])


def csv(comparison: Comparison) -> str:
    """Tidy, at full precision: one line per pair of methods x steps."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    conditions = comparison.summaries[0].conditions
    for (method, baseline, steps), cell in comparison.cells.items():
        p = cell.paired
        kind, center = (
            ("ratio", p.ratio) if isinstance(p, PairedRatio) else ("difference", p.difference)
        )
        numbers = ["" if math.isnan(x) else repr(x) for x in (center, p.low, p.high)]
        ps = ["" if math.isnan(x) else repr(x) for x in (p.p_value, cell.p_value)]
        writer.writerow([
            comparison.first, comparison.second, method, baseline, steps, kind, *numbers, p.n, *ps,
            int(cell.distinguished), int(cell.underpowered), " ".join(map(str, cell.seeds)),
            conditions.metric, conditions.metric_id,
        ])  # fmt: skip
    return file.getvalue()


def terminal(comparison: Comparison) -> Table:
    """A rich table; what is told apart is bold."""
    made = Table(
        title=Text(title(comparison), style="bold"),
        caption=Text(caption(comparison), style="dim"),
        caption_justify="left",
    )
    name, *steps = _header(comparison)
    made.add_column(name, overflow="fold", min_width=14)
    for step in steps:
        made.add_column(step, justify="right")
    for label, *cells in _rows(comparison):
        styled = [Text(cell, style="bold" if cell.endswith("*") else "") for cell in cells]
        made.add_row(Text("\n".join(wrapped(label))), *styled)
    return made
