"""Published numbers in a table of their own: what cannot stand in one with ours."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Sequence

from fewstep.reports import text
from fewstep.reports.published import COLUMNS, GROUPS, Published
from fewstep.reports.rows import published_value
from fewstep.reports.tables import latex_float

NOTE = "Not comparable with the table of our runs: other data, features or number of samples."
SECOND_HAND = "‡"


def title(rows: Sequence[Published]) -> str:
    """Whose numbers they are, and of what."""
    return f"Published numbers of {rows[0].data}"


def note(rows: Sequence[Published]) -> str:
    """What they are of, and what the marks mean."""
    kinds = dict.fromkeys(f"{row.metric} of {row.samples:,} samples" for row in rows)
    told = [f"{' and '.join(kinds)}, as printed."]
    if any(row.unintended for row in rows):
        told.append("In parentheses: steps that the method was not made for.")
    if any(row.checked != "source" for row in rows):
        told.append(f"{SECOND_HAND}: from a transcription, not read in the paper itself.")
    return " ".join(told)


def header(rows: Sequence[Published]) -> tuple[str, ...]:
    """The first column, a column for each number of steps, and the source."""
    return ("Method", *(text.in_steps(s) for s in _steps(rows)), "Source")


def body(rows: Sequence[Published]) -> list[tuple[str, ...]]:
    """A row each, those of one phase first."""
    found = []
    for group in GROUPS:
        for row in (row for row in rows if row.group == group):
            mark = "" if row.checked == "source" else f" {SECOND_HAND}"
            phase = "" if len({r.group for r in rows}) == 1 else f" ({group})"
            values = (published_value(row, s) for s in _steps(rows))
            found.append((row.label + phase + mark, *values, row.where))
    return found


def markdown(rows: Sequence[Published]) -> str:
    """The table and what is to be said of it."""
    align = "-" + ">" * len(_steps(rows)) + "-"
    table = text.markdown_table(header(rows), body(rows), align)
    told = text.markdown(f"{title(rows)}. {NOTE} {note(rows)}")
    return f"{table}\n\n{told}\n"


def latex(rows: Sequence[Published]) -> str:
    """A ``table`` float to be input, with booktabs; the sources are in its caption."""
    told = dict.fromkeys(row.where for row in rows)
    caption = f"{title(rows)}. {NOTE} {note(rows)} Sources: {'; '.join(told)}."
    shown = [row[:-1] for row in body(rows)]
    return "\n".join(
        [r"% \usepackage{booktabs}", *latex_float(caption, header(rows)[:-1], shown), ""]
    )


def csv(rows: Sequence[Published]) -> str:
    """A line for each number, as in ``published.csv``."""
    out = io.StringIO()
    writer = csv_module.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for steps in sorted(row.values):
            told = {"steps": steps, "value": row.values[steps]}
            writer.writerow({**vars(row), **told, "unintended": int(steps in row.unintended)})
    return out.getvalue()


def _steps(rows: Sequence[Published]) -> list[int]:
    return sorted({s for row in rows for s in row.values})
