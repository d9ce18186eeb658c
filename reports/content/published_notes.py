"""What must be read with published rows: marks at their names, and sentences below a table."""

from collections.abc import Collection, Sequence

from fewstep.reports.content.formatting import enumerated
from fewstep.reports.content.published import Published

MARK = "†"
CHECK_MARKS = {"secondary": "‡", "memory": "§"}
MEANING = {
    "secondary": "from a transcription, not read in the paper itself",
    "memory": "from memory, compared with nothing",
}


def check_mark(row: Published) -> str:
    """Of a row that was not read in its paper; else empty."""
    return CHECK_MARKS.get(row.checked, "")


def marks(row: Published) -> str:
    """Of a row that stands among ours."""
    return MARK + check_mark(row)


def notes(rows: Sequence[Published], steps: Collection[int]) -> list[str]:
    """On values at ``steps``: parentheses, network calls, what the rows say, check marks."""
    found = []
    if any(row.unintended & set(steps) for row in rows):
        found.append("In parentheses: steps that the method was not made for.")
    calls = {
        f"{row.method} takes {row.evaluations[s]} in {s}": None
        for row in rows
        for s in row.evaluations
        if s in steps and row.evaluations[s] != s
    }
    if calls:
        found.append(f"Network evaluations that are not the number of steps: {'; '.join(calls)}.")
    said = {row.note: [r.label for r in rows if r.note == row.note] for row in rows if row.note}
    found += [f"{enumerated(list(dict.fromkeys(of)))}: {note}." for note, of in said.items()]
    kinds = {row.checked for row in rows}
    return found + [f"{m}: {MEANING[kind]}." for kind, m in CHECK_MARKS.items() if kind in kinds]
