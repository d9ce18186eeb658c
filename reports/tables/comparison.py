"""A comparison of sweeps, or of methods with one: Markdown, LaTeX, CSV, a terminal's table."""

import math

from rich.table import Table
from rich.text import Text

from fewstep.analysis.comparison import Comparison
from fewstep.analysis.statistics import PairedRatio
from fewstep.reports.content import formatting
from fewstep.reports.content.captions import budget, measured
from fewstep.reports.content.formatting import enumerated, exact, listed, number
from fewstep.reports.tables import plain
from fewstep.reports.tables.terminal import empty

CSV_COLUMNS = (
    "first", "second", "method", "baseline", "steps", "kind", "estimate", "low", "high", "n",
    "p_value", "p_holm", "significant", "underpowered", "seeds", "metric", "metric_id",
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
        f"*: significant (paired t-test on log ratios, Holm over {over} of this table, "
        f"p ≤ {c.alpha:g})."
        if tests
        else "One pair of seeds: nothing is tested.",
    ]
    if any(not isinstance(cell.paired, PairedRatio) for cell in c.cells.values()):
        lines.append("Δ: mean difference, where a value is not positive.")
    if weak := sorted({cell.paired.n for cell in c.cells.values() if cell.underpowered}):
        few = "one seed is" if weak == [1] else f"{enumerated([str(n) for n in weak])} seeds are"
        lines.append(f"Without *, {few} underpowered, so not evidence of equality.")
    lines += _protocols(c)
    for name, of in (("training steps", "train_steps"), ("images", "images_seen")):
        a, b = ([f"{v:,}" for v in getattr(x, of)] for x in (first, second))
        if a != b:
            differ = f"{enumerated(a)} {name} in {c.first}, {enumerated(b)} in {c.second}"
            lines.append(f"Budgets differ: {differ}.")
    return " ".join(filter(None, [*lines, _alone(c)]))


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
    for (sweep, method), seeds in c.unpaired_seeds().items():
        of.setdefault((sweep, tuple(sorted(seeds))), []).append(method)
    parts = [
        f"{listed(seeds)} of {enumerated(methods)}" + ("" if c.one_sweep else f" in {sweep}")
        for (sweep, seeds), methods in of.items()
    ]
    return f"Seeds without a partner are left out: {'; '.join(parts)}." if parts else ""


def shown(comparison: Comparison, key: tuple[str, str, int]) -> str:
    """``0.83 [0.70, 0.98] (3) *``, or why there is nothing to compare."""
    if (cell := comparison.cells.get(key)) is None:
        without = [side for side in comparison.sides(key) if not side.n]
        return formatting.no_value(without[0]) if without else "no common seed"
    p = cell.paired
    value = number(p.ratio) if isinstance(p, PairedRatio) else f"Δ {number(p.difference)}"
    if math.isfinite(p.low):
        value += f" [{number(p.low)}, {number(p.high)}]"
    return f"{value} ({p.n})" + (" *" if cell.significant else "")


def _table(comparison: Comparison) -> plain.Table:
    c, rows = comparison, []
    for a, b in c.pairs:
        cells = (shown(c, (a, b, steps)) for steps in c.steps)
        rows.append((a if a == b else f"{a} / {b}", *cells))
    return plain.Table(title(c), ("Method", *map(formatting.in_steps, c.steps)), rows, caption(c))


def markdown(comparison: Comparison) -> str:
    """A pipe table under a heading, and the caption below it."""
    table = _table(comparison)
    name, note = map(formatting.markdown, (table.title, table.note))
    return f"# {name}\n\n{table.markdown()}\n\n{note}\n"


def latex(comparison: Comparison) -> str:
    """A ``table`` float to be \\input; its document needs booktabs and graphicx."""
    return plain.latex(_table(comparison))


def csv(comparison: Comparison) -> str:
    """Tidy, at full precision: one line per pair of methods x steps."""
    lines, conditions = [], comparison.summaries[0].conditions
    for (method, baseline, steps), cell in comparison.cells.items():
        p = cell.paired
        if isinstance(p, PairedRatio):
            kind, center = "ratio", p.ratio
        else:
            kind, center = "difference", p.difference
        lines.append([
            comparison.first, comparison.second, method, baseline, steps, kind,
            *map(exact, (center, p.low, p.high)), p.n, exact(p.p_value), exact(cell.p_value),
            int(cell.significant), int(cell.underpowered), " ".join(map(str, cell.seeds)),
            conditions.metric, conditions.metric_id,
        ])  # fmt: skip
    return formatting.csv_table(CSV_COLUMNS, lines)


def terminal(comparison: Comparison) -> Table:
    """A rich table; significant cells are bold."""
    described = _table(comparison)
    table = empty(described.title, described.header, described.note)
    for label, *cells in described.rows:
        styled = [Text(cell, style="bold" if cell.endswith("*") else "") for cell in cells]
        table.add_row(Text("\n".join(formatting.wrapped(label))), *styled)
    return table
