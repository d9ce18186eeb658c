"""Numbers from papers, to stand beside ours where all conditions agree, and marked as theirs."""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fewstep.analysis.conditions import CLASSES, NONE, UNKNOWN
from fewstep.analysis.summary_types import Conditions
from fewstep.errors import UserError, check_choice
from fewstep.public_data import KNOWN, REFERENCES, TRAIN, canonical

FILE = Path(__file__).with_name("published.csv")
BY_STEP = ("steps", "evaluations", "value", "unintended")
COLUMNS = (
    "group", "method", "data", "metric", "extractor", "samples", "reference", "conditional",
    "guidance", "network", "parameters", "images_seen", *BY_STEP, "source", "version", "table",
    "checked", "checked_by", "note",
)  # fmt: skip
OPTIONAL = ("table", "note")
"""Columns that may be empty; what is not known in the others is written ``unknown``."""
ONE_PHASE, TWO_PHASE = "one-phase", "two-phase"
GROUPS = (ONE_PHASE, TWO_PHASE)
CHECKED = ("source", "secondary", "memory")
GUIDED = "guided"  # at a scale that is not known
INCEPTION = "inception"
GUIDANCE = re.compile(
    rf"{NONE}|{UNKNOWN}|{GUIDED}|scale \d+(\.\d+)?( in \[[\d.]+, [\d.]+\])?|trained in: \w+=.+"
)
WORDS = {CLASSES: "class-conditional", NONE: "unconditional"}


@dataclass(frozen=True)
class Published:
    """A row of a paper's table. What is not known is ``unknown``, and agrees with nothing.

    Attributes:
        data: name of a public data set. metric, extractor, samples: what was measured, in which
            features, of how many samples. reference: a known reference file, or train.
        conditional: classes, none or unknown. guidance: none, unknown, guided (at a scale that is
            not known), ``scale 1.5``, ``scale 1.5 in [0.1, 0.7]``, or ``trained in: SETTINGS``.
        parameters: of the network. images_seen: in training.
        values: by number of steps, as printed. evaluations: of the network, likewise.
        unintended: the steps that the method was not made for.
        source, version, table: where it is printed.
        checked: source, where it was read there; secondary, where in a transcription; memory.
        checked_by: who compared it with what.
    """

    group: str
    method: str
    data: str
    metric: str
    extractor: str
    samples: int
    reference: str
    conditional: str
    guidance: str
    network: str
    parameters: str
    images_seen: str
    source: str
    version: str
    table: str
    checked: str
    checked_by: str
    note: str
    values: Mapping[int, str]
    evaluations: Mapping[int, int]
    unintended: frozenset[int]

    @property
    def label(self) -> str:
        """The method, its network, and how long that was trained, as far as they are known."""
        facts = [self.network] if self.network != UNKNOWN else []
        if self.images_seen != UNKNOWN:
            facts.append(f"{int(self.images_seen) / 1e6:.4g}M images")
        return f"{self.method} ({', '.join(facts)})" if facts else self.method

    @property
    def where(self) -> str:
        version = "" if self.version == UNKNOWN else f"version {self.version}"
        return ", ".join(filter(None, (self.source, self.table, version)))


def differences(row: Published, ours: Conditions) -> tuple[str, ...]:
    """In which conditions ``row`` and our table differ, in a few words each; () for none.

    A condition agrees only where both are known, equal, and ours is the same for the whole table.
    """
    features = INCEPTION if ours.metric_name == "FID" else ours.extractor
    compared: tuple[tuple[str, object, Sequence[object]], ...] = (
        ("data set", row.data, ours.data_is),
        ("classes", _words(row.conditional), tuple(map(_words, ours.conditional))),
        ("metric", row.metric, (ours.metric_name,)),
        ("features", row.extractor, (features,)),
        ("samples", row.samples, (ours.samples,)),
        ("reference statistics", canonical(row.reference), ours.references),
        ("guidance", row.guidance, ours.guidance_kinds),
        ("resolution", _pixels(row.data), tuple(map(_pixels, ours.data_is))),
    )
    return tuple(
        f"{name}: {_shown(theirs)}, here {' and '.join(map(_shown, own)) or UNKNOWN}"
        for name, theirs, own in compared
        if theirs in (UNKNOWN, GUIDED) or tuple(own) != (theirs,)
    )


def _pixels(data: str) -> str:
    return f"{KNOWN[data].size} pixels" if data in KNOWN else UNKNOWN


def _shown(value: object) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else str(value)


def _words(conditional: str) -> str:
    return WORDS.get(conditional, conditional)


def beside(ours: Conditions, choice: str = "auto") -> tuple[Published, ...]:
    """The rows that may stand in our table: those without ``differences``.

    ``choice`` "none": no rows.
    """
    if choice == "none":
        return ()
    return tuple(row for row in published() if not differences(row, ours))


def apart(
    ours: Conditions, choice: str = "auto", steps: Collection[int] | None = None
) -> tuple[Published, ...]:
    """The rows for a table of their own, which differ from ours in a condition.

    And those that could stand in ours but have none of its numbers of ``steps``.

    ``choice`` "auto": those of our data set and metric; "none": no rows; else those of the data
    set of that name. Raises ``UserError``: nothing published is known of it.
    """
    known = {row.data for row in published()}
    check_choice("data set with published numbers", choice, {*known, "auto", "none"})
    if choice == "auto":
        of_ours = [row for row in published() if (row.data,) == ours.data_is]
        rows = [row for row in of_ours if row.metric == ours.metric_name]
    else:
        rows = [row for row in published() if row.data == choice]
    return tuple(
        row
        for row in rows
        if differences(row, ours) or (steps is not None and not row.values.keys() & set(steps))
    )


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
        printed: dict[tuple[str, ...], str] = {}
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if empty := [c for c in COLUMNS if c not in OPTIONAL and not (row[c] or "").strip()]:
                raise UserError(f"{where}: {empty[0]} is empty (write {UNKNOWN} where it is)")
            place = tuple(row[c] for c in ("method", "data", "metric", "network", "guidance",
                                           "conditional", "source", "table", "steps"))  # fmt: skip
            if place in printed:
                raise UserError(f"{where} is of the same number as {printed[place]}")
            printed[place] = f"line {reader.line_num}"
            by_identity[tuple(row[c] for c in COLUMNS if c not in BY_STEP)].append(row)
    return tuple(_row(file, rows) for rows in by_identity.values())


def _row(file: Path, rows: Sequence[Mapping[str, str]]) -> Published:
    first = rows[0]
    try:
        _check(first)
        for row in rows:
            value, steps, calls = float(row["value"]), int(row["steps"]), int(row["evaluations"])
            if not (0 < value < math.inf and 1 <= steps <= calls):
                said = f"{row['value']} in {steps} steps of {calls} evaluations"
                raise ValueError(f"{said} is no value")
            check_choice("unintended", row["unintended"], ("0", "1"))
        return Published(
            **{name: first[name] for name in COLUMNS if name not in (*BY_STEP, "samples")},
            samples=int(first["samples"]),
            values={int(row["steps"]): row["value"] for row in rows},
            evaluations={int(row["steps"]): int(row["evaluations"]) for row in rows},
            unintended=frozenset(int(row["steps"]) for row in rows if int(row["unintended"])),
        )
    except ValueError as error:
        raise UserError(f"{file}, {first['method']!r} on {first['data']!r}: {error}") from None


def _check(row: Mapping[str, str]) -> None:
    """Raise ``ValueError`` for what is none of the words of its column."""
    check_choice("group", row["group"], GROUPS)
    check_choice("data", row["data"], KNOWN)
    check_choice("conditional", row["conditional"], (CLASSES, NONE, UNKNOWN))
    check_choice("reference", row["reference"], (TRAIN, UNKNOWN, *REFERENCES))
    check_choice("checked", row["checked"], CHECKED)
    check_choice("metric", row["metric"], ("FID",))
    if not re.fullmatch(rf"{INCEPTION}(, .+)?", row["extractor"]):
        raise ValueError(f"extractor {row['extractor']!r} is not {INCEPTION}, or that and a remark")
    if (of := REFERENCES.get(row["reference"])) and of.data != row["data"]:
        raise ValueError(f"reference {row['reference']!r} is of {of.data}")
    if int(row["samples"]) < 2:
        raise ValueError(f"samples must be at least 2, got {row['samples']}")
    if not GUIDANCE.fullmatch(row["guidance"]):
        raise ValueError(f"guidance {row['guidance']!r} is none of the forms in docs/report.md")
    if row["conditional"] == NONE != row["guidance"]:
        raise ValueError(f"guidance {row['guidance']!r} of an unconditional model")
    if row["images_seen"] != UNKNOWN and int(row["images_seen"]) < 1:
        raise ValueError(f"images_seen must be a number or {UNKNOWN}, got {row['images_seen']!r}")
