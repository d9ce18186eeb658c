"""CIFAR-10 from the official archives, binary or python, packed or unpacked. Nothing is downloaded.

A binary batch is 10,000 records of 1 label byte and 3,072 bytes: the red, green and blue planes of
32x32 pixels, row by row. A python batch is a pickle of the same rows and labels
(https://www.cs.toronto.edu/~kriz/cifar.html). There are five batches to train on, with 5,000 images
of each class together, and one to test with, which has 1,000 of each.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset, Split
from fewstep.experiments.data.plain_pickle import NotPlain, load_plain

PIXELS = 3 * 32 * 32
CLASSES = 10
PYTHON = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY = tuple(f"{name}.bin" for name in PYTHON)
FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", ".")
ARCHIVES = tuple(
    f"cifar-10-{kind}.tar{suffix}" for kind in ("binary", "python") for suffix in (".gz", "")
)

Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Rows (n, 3072) and labels (n,)."""


@DATA.register("cifar10")
@dataclass(frozen=True)
class CIFAR10:
    """50,000 + 10,000 photographs in 10 classes, 32x32 RGB, from ``root`` or a folder in it."""

    suggested_backbone: ClassVar[str] = "unet_32"

    root: str = "data"

    def load(self) -> Dataset:
        return load_cifar10(Path(self.root).expanduser())


def load_cifar10(root: Path, images: int = 10_000) -> Dataset:
    """CIFAR-10 from an archive or a folder at ``root``; batches of ``images`` each.

    Raises:
        UserError: there is none, or a file of it is damaged, or another one.
    """
    where, batches = _found(root)
    seen: dict[bytes, str] = {}
    parsed: list[Batch] = []
    for name, raw in batches.items():
        file = f"{where}/{name}"
        digest = hashlib.sha256(raw).digest()
        if digest in seen:
            raise UserError(f"{file} holds the same as {seen[digest]}")
        seen[digest] = name
        parse = parse_binary if name.endswith(".bin") else parse_python
        x, y = parse(raw, file, images)
        if y.max() >= CLASSES:
            raise UserError(f"{file} has label {y.max()}, expected 0..{CLASSES - 1}")
        parsed.append((x, y))
    names = list(batches)
    told = f"{where}: {names[0]} to {names[4]} together"
    train = _split(parsed[:5], told, 5 * images // CLASSES)
    test = _split(parsed[5:], f"{where}/{names[5]}", images // CLASSES)
    return Dataset("cifar10", train, test, CLASSES)


def _split(batches: list[Batch], told: str, due: int) -> Split:
    x, y = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    counts = np.bincount(y, minlength=CLASSES)
    if (counts != due).any():
        off = int((counts != due).argmax())
        raise UserError(
            f"{told}: {counts[off]} images of class {off}, expected {due} of each "
            f"(has a batch been put in another one's place?)"
        )
    pixels = torch.from_numpy(x.reshape(-1, 3, 32, 32))
    return Split(pixels, torch.from_numpy(y.astype(np.int64)))


# ---- where the files are -------------------------------------------------------------------------


def _found(root: Path) -> tuple[str, dict[str, bytes]]:
    """The place with six batches of one kind, and what they hold, in their order.

    A folder comes before an archive, binary before python. Where no place has all six, the first
    that has most of them, of whichever kind, is told.
    """
    places = [root / folder for folder in FOLDERS]
    parts: dict[Path, list[str]] = {}
    for place in places:
        for names in (BINARY, PYTHON):
            files = {n: f for n in names if (f := _with_or_without_gz(place / n)) is not None}
            if len(files) == len(names):
                return str(place), {n: _bytes(f) for n, f in files.items()}
            parts.setdefault(place, []).extend(files)
    for place in places:
        for archive in ARCHIVES:
            if (place / archive).is_file():
                return str(place / archive), _unpacked(place / archive)
    fullest = max(places, key=lambda place: len(parts[place]))
    if found := parts[fullest]:
        raise UserError(f"{fullest} has {', '.join(found)}, but no {_missing(found)}")
    raise UserError(
        f"cifar10 not found: looked in {', '.join(map(str, places))} for "
        f"{', '.join(ARCHIVES)}, or their files {BINARY[0]}, ... or {PYTHON[0]}, ..."
    )


def _missing(found: list[str]) -> str:
    """What a folder with some batches lacks of each kind that it has any of."""
    kinds = [names for names in (BINARY, PYTHON) if not set(names).isdisjoint(found)]
    lacking = [", ".join(n for n in names if n not in found) for names in kinds]
    return ", or else ".join(lacking)


def _with_or_without_gz(file: Path) -> Path | None:
    return next((f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()), None)


def _bytes(file: Path) -> bytes:
    raw = file.read_bytes()
    try:
        return gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is no whole gzip file ({error}): {begins(raw)}") from None


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The batches in a tar file, gzipped or not, in their order."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz" if archive.suffix == ".gz" else "r:") as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in (*BINARY, *PYTHON):
                    continue
                if name in found:
                    raise UserError(f"{archive} holds {name} twice")
                content = tar.extractfile(member)
                assert content is not None
                found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        start = begins(archive.read_bytes()[:64])
        raise UserError(f"{archive} is no whole tar file ({error}): {start}") from None
    names = BINARY if BINARY[0] in found else PYTHON
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{archive} holds no {', '.join(missing)}")
    if len(found) > len(names):
        raise UserError(f"{archive} holds binary and python batches: {', '.join(found)}")
    return {name: found[name] for name in names}


def begins(raw: bytes) -> str:
    """What a file begins with, for an error: a page of HTML, say."""
    return f"it begins with {raw[:15]!r}"


# ---- what is in them -----------------------------------------------------------------------------


def parse_binary(raw: bytes, file: str, images: int) -> Batch:
    """Raises ``UserError`` unless there are so many ``images``, not a byte more."""
    record = 1 + PIXELS
    if len(raw) != images * record:
        raise UserError(
            f"{file} has {len(raw)} bytes, expected {images * record} ({images} records of "
            f"{record}): {begins(raw)}"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(images, record)
    return rows[:, 1:], rows[:, 0]


def parse_python(raw: bytes, file: str, images: int) -> Batch:
    """Raises ``UserError`` unless it is a pickle of so many ``images``, and of this batch."""
    try:
        batch = load_plain(raw)
    except NotPlain as error:
        raise UserError(f"{file} is no batch of CIFAR-10 ({error}): {begins(raw)}") from None
    if not isinstance(batch, Mapping):
        raise UserError(f"{file} holds a {type(batch).__name__}, expected a dict")
    told = {k.decode() if isinstance(k, bytes) else str(k): v for k, v in batch.items()}
    if absent := [name for name in ("data", "labels") if name not in told]:
        raise UserError(f"{file} has no {absent[0]!r} (it has {', '.join(told) or 'nothing'})")
    x, y = np.asarray(told["data"]), np.asarray(told["labels"])
    if x.dtype != np.uint8 or x.shape != (images, PIXELS):
        raise UserError(f"{file} has data {x.dtype} {x.shape}, expected uint8 {(images, PIXELS)}")
    if y.shape != (images,) or y.dtype.kind not in "iu" or y.min() < 0:
        raise UserError(f"{file} has labels {y.dtype} {y.shape}, expected {images} of 0..9")
    said = told.get("batch_label", b"")
    said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    name = Path(file).name
    due = "testing batch" if name == "test_batch" else f"training batch {name[-1]}"
    if said and not said.startswith(due):
        raise UserError(f"{file} calls itself {said!r}, expected {due!r}")
    return x, y.clip(0, 255).astype(np.uint8)
