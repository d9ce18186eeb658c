"""The same table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fewstep.analysis.records import Cell, Summary
from fewstep.reports import text
from fewstep.reports.captions import FLOOR, caption
from fewstep.reports.published import MARK, Published
from fewstep.reports.rows import groups, published_value


def table(summary: Summary, published: Sequence[Published] = ()) -> Table:
    """A rich table: best bold, second underlined, what failed red, the caption underneath.

    ``published``: rows of papers that measure the same.
    """
    shown = Table(
        title=Text(summary.sweep, style="bold"),
        caption=Text(caption(summary, published), style="dim"),
        caption_justify="left",
    )
    shown.add_column("Method", overflow="fold", min_width=14)
    for steps in summary.steps:
        shown.add_column(text.in_steps(steps), justify="right")
    wide = len(summary.steps) > 4  # then the number of seeds goes on a line of its own
    for group in groups(summary, published):
        if group.title:
            shown.add_section()
            shown.add_row(Text(group.title, style="italic"))
        for method in group.methods:  # Text, not str: a name may hold [brackets]
            cells = [_cell(summary.cells[method, steps], wide) for steps in summary.steps]
            shown.add_row(Text("\n".join(text.wrapped(method))), *cells)
        for row in group.published:
            theirs = [Text(published_value(row, s), style="italic dim") for s in summary.steps]
            shown.add_row(Text(f"{row.label} {MARK}", style="italic dim"), *theirs)
    if summary.floor is not None:
        floor = Text(text.number(summary.floor), style="italic")
        shown.add_section()
        shown.add_row(Text(FLOOR, style="italic"), *(floor for _ in summary.steps))
    return shown


def _cell(cell: Cell, wide: bool) -> Text:
    if not cell.n:
        return Text(text.no_value(cell), style="red" if cell.n_failed else "dim")
    value, _, count = text.plain(cell).partition(" (")
    style = "bold" if cell.best else "underline" if cell.second else ""
    tie = " ≈" if cell.tie else ""
    gap = "\n" if wide else " "
    return Text.assemble((value, style), tie, gap, ("(" + count, "" if cell.complete else "yellow"))
