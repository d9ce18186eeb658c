"""One summary as Markdown, booktabs LaTeX and CSV."""

import re
from collections.abc import Sequence

from fewstep.analysis.summary_types import Cell, Summary
from fewstep.reports.content import formatting
from fewstep.reports.content.captions import caption, of_real_images
from fewstep.reports.content.formatting import exact
from fewstep.reports.content.published import Published
from fewstep.reports.content.published_notes import marks
from fewstep.reports.content.row_groups import group_of, groups, published_value
from fewstep.reports.tables.plain import latex_file, latex_float, latex_lines, latex_name, latex_row


def markdown(summary: Summary, published: Sequence[Published] = ()) -> str:
    """A pipe table, the best bold, the second underlined, and the caption below it.

    ``published``: rows of papers that measure the same, marked and not ranked.
    """
    steps = summary.steps
    rows: list[Sequence[str]] = []
    for group in groups(summary, published):
        if group.title:
            rows.append([f"*{group.title}*", *("" for _ in steps)])
        for m in group.methods:
            cells = (_markdown_cell(summary.cells[m, s]) for s in steps)
            rows.append([formatting.markdown(m), *cells])
        for row in group.published:
            theirs = (f"*{formatting.markdown(published_value(row, s))}*" for s in steps)
            rows.append([f"*{formatting.markdown(row.label)}* {marks(row)}", *theirs])
    for name, real in of_real_images(summary):
        rows.append([f"*{name}*", *[f"*{formatting.number(real)}*"] * len(steps)])
    header = ["Method", *map(formatting.in_steps, steps)]
    table = formatting.markdown_table(header, rows, "-" + ">" * len(steps), escaped=True)
    return f"{table}\n\n{formatting.markdown(caption(summary, published))}\n"


def _markdown_cell(cell: Cell) -> str:
    shown = formatting.plain(cell)
    value, space, count = shown.partition(" (") if cell.n else (shown, "", "")
    if cell.best:
        value = f"**{value}**"
    elif cell.second:
        value = f"<ins>{value}</ins>"  # GitHub strips <u>
    return value + space + count + (" ≈" if cell.tie else "")


def latex(summary: Summary, published: Sequence[Published] = ()) -> str:
    """A ``table`` float to be \\input; its document needs booktabs and graphicx."""
    steps, k, lines = summary.steps, len(summary.steps), []
    if k:
        lines.append(rf"& \multicolumn{{{k}}}{{c}}{{Sampling steps}} \\ \cmidrule(lr){{2-{k + 1}}}")
    lines += [latex_row(["Method", *map(str, steps)]), r"\midrule"]
    for i, group in enumerate(groups(summary, published)):
        if group.title:
            lines += [r"\addlinespace"] if i else []
            lines.append(rf"\multicolumn{{{k + 1}}}{{l}}{{\textit{{{group.title}}}}} \\")
        for m in group.methods:
            cells = (_latex_cell(summary.cells[m, s]) for s in steps)
            lines.append(latex_row([latex_name(m), *cells]))
        for row in group.published:
            values = (formatting.latex(published_value(row, s)) for s in steps)
            label = rf"\textit{{{formatting.latex(row.label)}}}\,{_raised(marks(row))}"
            lines.append(latex_row([label, *(rf"\textit{{{value}}}" for value in values)]))
    last = [latex_row([rf"\textit{{{name}}}", *[formatting.number(real)] * k])
            for name, real in of_real_images(summary)]  # fmt: skip
    lines += [r"\midrule", *last] if last else []
    label = f"tab:{re.sub(r'[^A-Za-z0-9]+', '-', summary.sweep)}"
    return latex_file(
        latex_float(caption(summary, published), "l" + "c" * k, lines, "small", label)
    )


def _raised(marked: str) -> str:
    return "".join(f"$^{formatting.latex(m).strip('$')}$" for m in marked)


def _latex_cell(cell: Cell) -> str:
    if not cell.n:
        return rf"{{\scriptsize {formatting.latex(formatting.no_value(cell))}}}"
    mean, spread = formatting.mean_and_spread(cell)
    value = mean + (rf" {{\scriptsize$\pm$ {spread}}}" if spread else "")
    if cell.best:
        value = rf"\textbf{{{value}}}"
    elif cell.second:
        value = rf"\underline{{{value}}}"
    value += r"$^{\approx}$" if cell.tie else ""
    count = rf"{{\scriptsize({formatting.run_counts(cell)})}}"
    # an incomplete cell has much to say: on a second line, lest it widen the column
    return f"{value} {count}" if cell.complete else latex_lines([value, count], "c")


CSV_COLUMNS = (
    "method", "group", "steps", "nfe", "mean", "half_width", "n", "failed", "stopped", "missing",
    "expected", "floor",
    "best", "second", "tie", "p_value", "underpowered", "metric", "metric_id", "seeds", "keys",
    "seed_sd", "sampling_sd", "reconstruction",
)  # fmt: skip


def csv(summary: Summary) -> str:
    """Tidy and numeric, at full precision: one line per method x steps; empty for no value."""
    conditions = summary.conditions
    return formatting.csv_table(CSV_COLUMNS, [
        [
            method, group_of(summary, method), steps, exact(cell.nfe), exact(cell.mean),
            exact(cell.half_width), cell.n, cell.n_failed, cell.n_stopped, cell.n_missing,
            cell.n_expected, exact(summary.floor), int(cell.best), int(cell.second),
            int(cell.tie), exact(cell.p_value), int(cell.underpowered), conditions.metric or "",
            conditions.metric_id or "", " ".join(map(str, cell.values)), " ".join(cell.keys),
            exact(cell.seed_sd), exact(cell.sampling_sd), exact(summary.reconstruction),
        ]
        for method in summary.methods for steps in summary.steps
        for cell in [summary.cells[method, steps]]
    ])  # fmt: skip
