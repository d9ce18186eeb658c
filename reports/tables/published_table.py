"""Published numbers in a table of their own: what cannot stand in one with ours, and why."""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from fewstep.analysis.summary_types import Conditions
from fewstep.reports.content import formatting
from fewstep.reports.content.published import BY_STEP, COLUMNS, GROUPS, Published, differences
from fewstep.reports.content.published_notes import check_mark, notes
from fewstep.reports.content.row_groups import published_value
from fewstep.reports.tables import plain

OTHER_STEPS = "steps: none of our numbers of sampling steps"
NOTE = "Not comparable with the table of our runs."


def table(rows: Sequence[Published], ours: Conditions) -> plain.Table:
    """A column for each number of steps, what differs, and the source; rows of one phase first.

    Each difference has a letter, which stands in the rows and is explained in the note.
    """
    steps = sorted({s for row in rows for s in row.values})
    found = [(row, differences(row, ours) or (OTHER_STEPS,)) for row in rows]
    all_rows = [d for d in found[0][1] if all(d in own for _, own in found)]
    single = dict.fromkeys(d for _, own in found for d in own if d not in all_rows)
    letters = {difference: _letters(i) for i, difference in enumerate(single)}
    lines = []
    for row, own in sorted(found, key=lambda pair: GROUPS.index(pair[0].group)):
        mark = f" {check_mark(row)}".rstrip()
        phase = "" if len({r.group for r in rows}) == 1 else f" ({row.group})"
        values = (published_value(row, s) for s in steps)
        differs = ", ".join(letter for d, letter in letters.items() if d in own)
        lines.append((row.label + phase + mark, *values, differs or "–", row.where))
    data = formatting.enumerated(list(dict.fromkeys(row.data for row in rows)))
    return plain.Table(
        title=f"Published numbers of {data}",
        header=("Method", *map(formatting.in_steps, steps), "Differs", "Source"),
        rows=lines,
        note=" ".join(_notes(rows, all_rows, letters)),
        align="-" + ">" * len(steps) + "--",
    )


def _notes(
    rows: Sequence[Published], all_rows: Sequence[str], letters: dict[str, str]
) -> list[str]:
    kinds = dict.fromkeys(f"{row.metric} of {row.samples:,} samples" for row in rows)
    told = [NOTE]
    if all_rows:
        told.append(f"All rows differ in: {'; '.join(all_rows)}.")
    if letters:
        each = "; ".join(f"({letter}) {text}" for text, letter in letters.items())
        told.append(f"Rows differ in: {each}.")
    told.append(f"{' and '.join(kinds)}, as printed.")
    return told + notes(rows, {s for row in rows for s in row.values})


def _letters(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return ("" if i < 26 else _letters(i // 26 - 1)) + ascii_lowercase[i % 26]


def markdown(rows: Sequence[Published], ours: Conditions) -> str:
    """The table and what is to be said of it."""
    shown = table(rows, ours)
    return f"{shown.markdown()}\n\n{formatting.markdown(f'{shown.title}. {shown.note}')}\n"


def latex(rows: Sequence[Published], ours: Conditions) -> str:
    """A ``table`` float to be input, with booktabs and graphicx; the sources are in its caption."""
    shown, sources = table(rows, ours), dict.fromkeys(row.where for row in rows)
    note = f"{shown.note} Sources: {'; '.join(sources)}."
    kept = [row[:-1] for row in shown.rows]
    return plain.latex(replace(shown, header=shown.header[:-1], rows=kept, note=note))


def csv(rows: Sequence[Published], ours: Conditions) -> str:
    """A line for each number, as in ``published.csv``, and what differs."""
    lines = []
    for row in rows:
        differs = "; ".join(differences(row, ours))
        for steps in sorted(row.values):
            by_step = (steps, row.evaluations[steps], row.values[steps],
                       int(steps in row.unintended))  # fmt: skip
            cells = {**vars(row), **dict(zip(BY_STEP, by_step, strict=True))}
            lines.append([*(cells[column] for column in COLUMNS), differs])
    return formatting.csv_table((*COLUMNS, "differences"), lines)
