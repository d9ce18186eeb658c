"""Columns of images and labels in Hugging Face's tables, and what in them cannot be used."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError, unknown

LABELS = ("label", "labels", "class")
UNKNOWN = -1  # the label of `datasets` for what has none


class Labels(NamedTuple):
    """The labels y (N,) of a split; ``names`` of its classes in order, None for bare numbers."""

    y: NDArray[np.int64]
    names: tuple[str, ...] | None
    kind: str

    @property
    def classes(self) -> int:
        """How many there are: of the names, else one more than the largest number."""
        return int(self.y.max()) + 1 if self.names is None else len(self.names)


def label_kind(feature: Any) -> str | None:
    """What a column's labels are: classes, numbers, strings or booleans; None for anything else."""
    if type(feature).__name__ == "ClassLabel":
        return "classes"
    dtype = str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else ""
    for kind, types in (("numbers", ("int", "uint")), ("strings", ("string", "large_string")),
                        ("booleans", ("bool",))):  # fmt: skip
        if dtype.startswith(types):
            return kind
    return None


def column(split: Any, name: str, kind: str) -> str:
    """The column of this ``kind``, "image" or "label", called ``name``; or the only one.

    Labels are classes, or whole numbers under a usual name; without these, strings or booleans
    under such a name. What is named may be any of them.
    """
    features = split.features
    if kind == "image":
        fitting = possible = [c for c, f in features.items() if is_image(f)]
    else:
        kinds = {c: label_kind(f) for c, f in features.items()}
        possible = [c for c in kinds if kinds[c]]
        usual = [c for c in possible if c.lower() in LABELS]
        fitting = [c for c in possible if kinds[c] == "classes" or (
            kinds[c] == "numbers" and c in usual)] or usual  # fmt: skip
    if name and name not in possible:
        if name not in features:
            raise unknown(f"data.{kind}", name, possible)
        raise UserError(
            f"data.{kind}: column {described(features, [name])} is none of {kind}s "
            f"(choices: {', '.join(possible) or 'none'})"
        )
    if not name and not fitting:
        hint = " (data.labels=false takes none)" if kind == "label" else ""
        raise UserError(f"no column of {kind}s among {described(features, features)}{hint}")
    if not name and len(fitting) > 1:
        choices = ", ".join(fitting)
        raise UserError(f"several columns of {kind}s: choose with data.{kind}= ({choices})")
    return name or fitting[0]


def check_columns(split: Any, image: str, label: str | None, where: str) -> None:
    """Raise ``UserError`` unless there are rows, and these columns, which train has."""
    features = split.features
    if len(split) == 0:
        raise UserError(f"{where} has no rows")
    if not is_image(features.get(image)):
        among = described(features, features)
        raise UserError(f"{where}: no column {image!r} of images among {among}")
    if label is not None and label_kind(features.get(label)) is None:
        among = f"{described(features, features)} (data.labels=false takes none)"
        raise UserError(f"{where}: no column {label!r} of labels among {among}")


def is_image(feature: Any) -> bool:
    """Whether a column of this type is of images."""
    return type(feature).__name__ == "Image"


def described(features: Any, columns: Iterable[str]) -> str:
    """Columns with their types, in short: an own ``repr`` would list all classes."""
    kinds = {c: type(features[c]).__name__ for c in columns}
    return ", ".join(
        f"{c} ({features[c].dtype if kind == 'Value' else kind})" for c, kind in kinds.items()
    )


def values(split: Any, column: str) -> Any:
    """A column as pyarrow's ChunkedArray, as it lies in memory: images stay encoded."""
    return split.select_columns([column]).with_format("arrow")[:].column(column)


def has_labels(split: Any, column: str) -> bool:
    """Whether there is such a column with a label in it other than None and -1."""
    if column not in split.features:
        return False
    found = values(split, column).drop_null()
    whole = label_kind(split.features[column]) in ("classes", "numbers")
    return len(found) > 0 and not (whole and bool((found.to_numpy() == UNKNOWN).all()))


def read_labels(split: Any, column: str, where: str) -> Labels:
    """The labels of all rows; ``UserError`` for a row that has none, or one out of range.

    Strings are sorted by name, as sub-folders are.
    """
    feature, found = split.features[column], values(split, column)
    kind = label_kind(feature)
    assert kind is not None, feature
    refuse_rows(np.asarray(found.is_null()), f"{where}: {column}", "None")
    if kind == "strings":
        texts = np.array(found.to_pylist(), dtype=object)
        refuse_rows(texts == "", f"{where}: {column}", "''")
        distinct, inverse = np.unique(texts, return_inverse=True)
        return Labels(inverse.astype(np.int64), tuple(map(str, distinct)), kind)
    y = found.to_numpy()
    if kind == "booleans":
        return Labels(y.astype(np.int64), ("False", "True"), kind)
    names = tuple(feature.names) if kind == "classes" else None
    most = len(names) - 1 if names is not None else np.iinfo(np.int64).max
    for wrong, than in ((y < 0, "at least 0"), (y > most, f"at most {most}")):
        if wrong.any():
            value = y[wrong.argmax()]
            refuse_rows(wrong, f"{where}: {column}", f"{value}, expected {than}")
    return Labels(y.astype(np.int64), names, kind)


def aligned(train: Labels, test: Labels, where: str) -> NDArray[np.int64]:
    """The labels of ``test`` in the order of ``train``'s classes; ``UserError`` for other ones."""
    if train.kind != test.kind:
        raise UserError(f"{where}: its labels are {test.kind}, those to train on {train.kind}")
    if train.names is None or test.names is None:
        most = train.classes - 1
        refuse_rows(test.y > most, f"{where}: the label", f"above train's largest, {most}")
        return test.y
    if other := [name for name in test.names if name not in train.names]:
        raise UserError(f"{where}: class {other[0]!r} is not among those to train on")
    order = np.array([train.names.index(name) for name in test.names], np.int64)
    return order[test.y]


def check_class_orders(files: Sequence[Path], column: str, where: str) -> None:
    """Raise ``UserError`` where two files name their classes differently.

    ``datasets`` gives all of them the first one's names.
    """
    first: tuple[Path, list[str]] | None = None
    for file in files:
        if (names := own_classes(file, column)) is None:
            continue
        if first is not None and first[1] != names:
            raise UserError(
                f"{where}: {first[0].name} and {file.name} have other classes in {column!r}, or "
                f"in another order ({', '.join(first[1][:5])} and {', '.join(names[:5])}): write "
                f"them again with the same"
            )
        first = first or (file, names)


def own_classes(file: Path, column: str) -> list[str] | None:
    """The names of a file's own ClassLabel; None where it has none, or cannot be read."""
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(file)
        else:
            schema = _arrow_schema(file)
        metadata = schema.metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError, OSError):  # ArrowInvalid is a ValueError
        return None


def _arrow_schema(file: Path) -> Any:
    """Of either format: ``datasets`` reads streams and files."""
    import pyarrow.ipc

    try:
        with pyarrow.ipc.open_stream(file) as table:
            return table.schema
    except ValueError:
        with pyarrow.ipc.open_file(file) as table:
            return table.schema


def unseen(labels: Labels) -> tuple[str, ...]:
    """A note of the classes that no training image has, where there are some."""
    every, present = range(labels.classes), set(np.unique(labels.y).tolist())
    if not (absent := [i for i in every if i not in present]):
        return ()
    first = absent[0] if labels.names is None else labels.names[absent[0]]
    more = ", ..." if len(absent) > 1 else ""
    return (f"{len(absent)} of {labels.classes} classes have no training images ({first}{more})",)


def linked_images(split: Any, column: str, where: str) -> list[str]:
    """The paths of images that are not in the table, but in files of their own.

    Raises ``UserError`` for rows without an image, and for files that are not there.
    """
    import pyarrow.compute as pc

    found = values(split, column)
    raw, paths = (pc.struct_field(found, name) for name in ("bytes", "path"))
    outside = np.asarray(raw.is_null())
    refuse_rows(outside & np.asarray(paths.is_null()), f"{where}: {column}", "None")
    rows = outside.nonzero()[0]
    linked: Sequence[str] = paths.filter(outside).to_pylist()
    missing = [not os.path.isfile(path) for path in linked]
    if any(missing):
        i = missing.index(True)
        raise UserError(
            f"{where}: {column} of row {rows[i]} is in a file that does not exist, {linked[i]} "
            f"({sum(missing)} of {len(found)} rows)"
        )
    return list(linked)


def refuse_rows(wrong: NDArray[np.bool_], what: str, value: str) -> None:
    """Raise ``UserError`` where a row is ``wrong``: "WHAT of row 3 is VALUE (2 of 9 rows)"."""
    if count := int(wrong.sum()):
        raise UserError(
            f"{what} of row {int(wrong.argmax())} is {value} ({count} of {len(wrong)} rows)"
        )
