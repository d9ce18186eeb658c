"""Published numbers in a table of their own: what cannot stand in one with ours."""

from collections.abc import Sequence
from dataclasses import replace

from fewstep.reports.content import formatting
from fewstep.reports.content.published import COLUMNS, GROUPS, Published
from fewstep.reports.content.row_groups import published_value
from fewstep.reports.tables import plain

NOTE = "Not comparable with the table of our runs: other data, features or number of samples."
SECOND_HAND = "‡"


def table(rows: Sequence[Published]) -> plain.Table:
    """A column for each number of steps, and the source; the rows of one phase first."""
    steps = sorted({s for row in rows for s in row.values})
    lines = []
    for row in sorted(rows, key=lambda row: GROUPS.index(row.group)):
        mark = "" if row.checked == "source" else f" {SECOND_HAND}"
        phase = "" if len({r.group for r in rows}) == 1 else f" ({row.group})"
        values = (published_value(row, s) for s in steps)
        lines.append((row.label + phase + mark, *values, row.where))
    kinds = dict.fromkeys(f"{row.metric} of {row.samples:,} samples" for row in rows)
    notes = [NOTE, f"{' and '.join(kinds)}, as printed."]
    if any(row.unintended for row in rows):
        notes.append("In parentheses: steps that the method was not made for.")
    if any(row.checked != "source" for row in rows):
        notes.append(f"{SECOND_HAND}: from a transcription, not read in the paper itself.")
    return plain.Table(
        title=f"Published numbers of {rows[0].data}",
        header=("Method", *map(formatting.in_steps, steps), "Source"),
        rows=lines,
        note=" ".join(notes),
        align="-" + ">" * len(steps) + "-",
    )


def markdown(rows: Sequence[Published]) -> str:
    """The table and what is to be said of it."""
    shown = table(rows)
    return f"{shown.markdown()}\n\n{formatting.markdown(f'{shown.title}. {shown.note}')}\n"


def latex(rows: Sequence[Published]) -> str:
    """A ``table`` float to be input, with booktabs; the sources are in its caption."""
    shown, sources = table(rows), dict.fromkeys(row.where for row in rows)
    note = f"{shown.note} Sources: {'; '.join(sources)}."
    kept = [row[:-1] for row in shown.rows]
    return plain.latex(replace(shown, header=shown.header[:-1], rows=kept, note=note))


def csv(rows: Sequence[Published]) -> str:
    """A line for each number, as in ``published.csv``."""
    return formatting.csv_table(COLUMNS, [
        [{**vars(row), "steps": steps, "value": row.values[steps],
          "unintended": int(steps in row.unintended)}[column] for column in COLUMNS]
        for row in rows for steps in sorted(row.values)
    ])  # fmt: skip
