"""One summary as Markdown, booktabs LaTeX and CSV."""

from __future__ import annotations

import csv as csv_module
import io
import math
import re
from collections.abc import Iterable, Sequence

from fewstep.analysis.records import Cell, Summary
from fewstep.reports import text
from fewstep.reports.captions import FLOOR, caption
from fewstep.reports.published import MARK, Published
from fewstep.reports.rows import group_of, groups, published_value


def markdown(summary: Summary, published: Sequence[Published] = ()) -> str:
    """A pipe table, the best bold, the second underlined, and the caption below it.

    ``published``: rows of papers that measure the same, marked and not ranked.
    """
    header = ["Method", *(text.in_steps(s) for s in summary.steps)]
    rows = []
    for group in groups(summary, published):
        if group.title:
            rows.append([f"*{group.title}*", *("" for _ in summary.steps)])
        rows += [
            [text.markdown(m), *(_markdown_cell(summary.cells[m, s]) for s in summary.steps)]
            for m in group.methods
        ]
        rows += [
            [
                f"*{text.markdown(row.label)}* {MARK}",
                *(f"*{text.markdown(published_value(row, s))}*" for s in summary.steps),
            ]
            for row in group.published
        ]
    if summary.floor is not None:
        floor = f"*{text.number(summary.floor)}*"
        rows.append([f"*{FLOOR}*", *(floor for _ in summary.steps)])
    align = ["---", *("---:" for _ in summary.steps)]
    lines = [f"| {' | '.join(row)} |" for row in (header, align, *rows)]
    return "\n".join([*lines, "", text.markdown(caption(summary, published)), ""])


def _markdown_cell(cell: Cell) -> str:
    shown = text.plain(cell)
    value, space, count = shown.partition(" (") if cell.n else (shown, "", "")
    if cell.best:
        value = f"**{value}**"
    elif cell.second:
        value = f"<ins>{value}</ins>"  # GitHub strips <u>
    return value + space + count + (" ≈" if cell.tie else "")


def latex(summary: Summary, published: Sequence[Published] = ()) -> str:
    """A ``table`` float to be \\input; its document needs ``\\usepackage{booktabs}``."""
    k = len(summary.steps)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{text.latex(caption(summary, published))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', summary.sweep)}}}",
        rf"\begin{{tabular}}{{l{'c' * k}}}",
        r"\toprule",
    ]
    if k:
        lines.append(rf"& \multicolumn{{{k}}}{{c}}{{Sampling steps}} \\ \cmidrule(lr){{2-{k + 1}}}")
    lines.append(latex_row(["Method", *map(str, summary.steps)]))
    lines.append(r"\midrule")
    for i, group in enumerate(groups(summary, published)):
        if group.title:
            lines += [r"\addlinespace"] if i else []
            lines.append(rf"\multicolumn{{{k + 1}}}{{l}}{{\textit{{{group.title}}}}} \\")
        lines += [
            latex_row([
                latex_lines([*map(text.latex, text.wrapped(m))], "l"),
                *(_latex_cell(summary.cells[m, s]) for s in summary.steps),
            ])
            for m in group.methods
        ]  # fmt: skip
        lines += [
            latex_row([
                rf"\textit{{{text.latex(row.label)}}}\,$^\dagger$",
                *(rf"\textit{{{text.latex(published_value(row, s))}}}" for s in summary.steps),
            ])
            for row in group.published
        ]  # fmt: skip
    if summary.floor is not None:
        lines.append(r"\midrule")
        lines.append(latex_row([rf"\textit{{{FLOOR}}}", *[text.number(summary.floor)] * k]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex_document(*files: str) -> str:
    """A document of its own around files that hold tables and text, to look at."""
    return "\n".join([
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=2cm]{geometry}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        *(rf"\input{{{file}}}" for file in files),
        r"\end{document}",
        "",
    ])  # fmt: skip


def latex_float(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a ``table`` of plain text, whatever is in it: names left, all else right."""
    heads = [latex_lines([*map(text.latex, text.wrapped(h, 12))], "c") for h in header[1:]]
    return [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{text.latex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        latex_row([text.latex(header[0]), *heads]),
        r"\midrule",
        *(
            latex_row([latex_lines([*map(text.latex, text.wrapped(row[0]))], "l"),
                       *map(text.latex, row[1:])])
            for row in rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]  # fmt: skip


def latex_row(cells: Sequence[str]) -> str:
    """One line of a tabular."""
    return " & ".join(cells) + r" \\"


def latex_lines(lines: list[str], align: str) -> str:
    """One or more lines of LaTeX in one cell, centred on the row."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_cell(cell: Cell) -> str:
    if not cell.n:
        return rf"{{\scriptsize {text.latex(text.no_value(cell))}}}"
    mean, spread = text.mean_and_spread(cell)
    value = mean + (rf" {{\scriptsize$\pm$ {spread}}}" if spread else "")
    if cell.best:
        value = rf"\textbf{{{value}}}"
    elif cell.second:
        value = rf"\underline{{{value}}}"
    value += r"$^{\approx}$" if cell.tie else ""
    count = rf"{{\scriptsize({text.account(cell)})}}"
    # an incomplete cell has much to say: on a second line, lest it widen the column
    return f"{value} {count}" if cell.complete else latex_lines([value, count], "c")


CSV_COLUMNS = (
    "method", "group", "steps", "nfe", "mean", "half_width", "n", "failed", "stopped", "missing",
    "expected", "floor",
    "best", "second", "tie", "p_value", "underpowered", "metric", "metric_id", "seeds", "keys",
    "seed_sd", "sampling_sd",
)  # fmt: skip


def csv(summary: Summary) -> str:
    """Tidy and numeric, at full precision: one line per method x steps; empty for no value."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    conditions = summary.conditions
    for method in summary.methods:
        for steps in summary.steps:
            c = summary.cells[method, steps]
            writer.writerow([
                method, group_of(summary, method), steps, exact(c.nfe), exact(c.mean),
                exact(c.half_width), c.n, c.n_failed, c.n_stopped, c.n_missing, c.n_expected,
                exact(summary.floor),
                int(c.best), int(c.second), int(c.tie), exact(c.p_value), int(c.underpowered),
                conditions.metric or "", conditions.metric_id or "",
                " ".join(map(str, c.values)), " ".join(c.keys),
                exact(c.seed_sd), exact(c.sampling_sd),
            ])  # fmt: skip
    return file.getvalue()


def exact(value: float | None) -> str:
    """A number at full precision, for a machine; empty for none."""
    return "" if value is None or math.isnan(value) else repr(value)
