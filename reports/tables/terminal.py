"""The same table in a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fewstep.analysis.summary_types import Cell, Summary
from fewstep.reports.content import formatting
from fewstep.reports.content.captions import caption, of_real_images
from fewstep.reports.content.published import Published
from fewstep.reports.content.published_notes import marks
from fewstep.reports.content.row_groups import groups, published_value


def table(summary: Summary, published: Sequence[Published] = ()) -> Table:
    """A rich table: best bold, second underlined, what failed red, the caption underneath.

    ``published``: rows of papers that measure the same.
    """
    header = ("Method", *map(formatting.in_steps, summary.steps))
    shown = empty(summary.sweep, header, caption(summary, published))
    wide = len(summary.steps) > 4  # then the number of seeds goes on a line of its own
    for group in groups(summary, published):
        if group.title:
            shown.add_section()
            shown.add_row(Text(group.title, style="italic"))
        for method in group.methods:  # Text, not str: a name may hold [brackets]
            cells = [_cell(summary.cells[method, steps], wide) for steps in summary.steps]
            shown.add_row(Text("\n".join(formatting.wrapped(method))), *cells)
        for row in group.published:
            theirs = [Text(published_value(row, s), style="italic dim") for s in summary.steps]
            shown.add_row(Text(f"{row.label} {marks(row)}", style="italic dim"), *theirs)
    for i, (label, value) in enumerate(of_real_images(summary)):
        if i == 0:
            shown.add_section()
        number = Text(formatting.number(value), style="italic")
        shown.add_row(Text(label, style="italic"), *(number for _ in summary.steps))
    return shown


def empty(title: str, header: Sequence[str], caption: str) -> Table:
    """A rich table without rows yet; all plain text, whose first column may be folded."""
    table = Table(
        title=Text(title, style="bold"), caption=Text(caption, style="dim"), caption_justify="left"
    )
    name, *others = header
    table.add_column(name, overflow="fold", min_width=14)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _cell(cell: Cell, wide: bool) -> Text:
    if not cell.n:
        return Text(formatting.no_value(cell), style="red" if cell.n_failed else "dim")
    value, _, count = formatting.plain(cell).partition(" (")
    style = "bold" if cell.best else "underline" if cell.second else ""
    tie = " ≈" if cell.tie else ""
    gap = "\n" if wide else " "
    return Text.assemble((value, style), tie, gap, ("(" + count, "" if cell.complete else "yellow"))
