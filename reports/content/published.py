"""Numbers from papers, to stand beside ours where they measure the same, and marked as theirs."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fewstep.analysis.summary_types import Conditions
from fewstep.errors import UserError, check_choice

FILE = Path(__file__).with_name("published.csv")
COLUMNS = (
    "group", "method", "data", "metric", "samples", "network", "steps", "value", "unintended",
    "source", "table", "checked",
)  # fmt: skip
ONE_PHASE, TWO_PHASE = "one-phase", "two-phase"
GROUPS = (ONE_PHASE, TWO_PHASE)
MARK = "†"


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        values: by number of steps, as printed.
        unintended: the steps that the method was not made for.
        data, metric, samples: what was measured. source, table: where it is printed.
        checked: source, where it was read there; secondary, where in a transcription.
    """

    group: str
    method: str
    network: str
    data: str
    metric: str
    samples: int
    source: str
    table: str
    checked: str
    values: Mapping[int, str]
    unintended: frozenset[int]

    @property
    def label(self) -> str:
        return f"{self.method} ({self.network})" if self.network else self.method

    @property
    def where(self) -> str:
        return f"{self.source}, {self.table}" if self.table else self.source


def beside(conditions: Conditions, choice: str = "auto") -> tuple[Published, ...]:
    """The rows that may stand in the same column as ours.

    Same data set, same metric by name, same number of samples: a distance over other features, or
    over fewer samples, is another quantity. ``choice`` "none": no rows.
    """
    if choice == "none" or len(conditions.data) != 1:
        return ()
    ours = (conditions.data[0], conditions.metric_name, conditions.samples)
    return tuple(row for row in published() if (row.data, row.metric, row.samples) == ours)


def published_of(choice: str) -> tuple[Published, ...]:
    """The rows of the data set ``choice``, for a table of their own; none for auto and none.

    Raises ``UserError``: nothing published is known of it.
    """
    if choice in ("auto", "none"):
        return ()
    known = {row.data for row in published()}
    check_choice("data set with published numbers", choice, {*known, "auto", "none"})
    return tuple(row for row in published() if row.data == choice)


@cache
def published(file: Path = FILE) -> tuple[Published, ...]:
    """The rows of ``published.csv``, in its order.

    Raises ``UserError``: a line that is not what it should be.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{file} must have the columns {', '.join(COLUMNS)}")
        by_identity: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for row in reader:
            identity = (c for c in COLUMNS if c not in ("steps", "value", "unintended"))
            by_identity[tuple(row[c] for c in identity)].append(row)
    return tuple(_row(file, rows) for rows in by_identity.values())


def _row(file: Path, rows: Sequence[Mapping[str, str]]) -> Published:
    first = rows[0]
    try:
        check_choice("group", first["group"], GROUPS)
        _ = [float(row["value"]) for row in rows]
        return Published(
            **{name: first[name] for name in
               ("group", "method", "network", "data", "metric", "source", "table", "checked")},
            samples=int(first["samples"]),
            values={int(row["steps"]): row["value"] for row in rows},
            unintended=frozenset(int(row["steps"]) for row in rows if int(row["unintended"])),
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{file}, {first['method']!r} on {first['data']!r}: {error}") from None
