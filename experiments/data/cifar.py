"""CIFAR-10 from the official archives, binary or python, packed or unpacked. Nothing is downloaded.

A binary batch is 10,000 records of 1 label byte and 3,072 bytes: the red, green and blue planes of
32x32 pixels, row by row. A python batch is a pickle of the same rows and labels
(https://www.cs.toronto.edu/~kriz/cifar.html). There are five batches to train on, with 5,000 images
of each class together, and one to test with, which has 1,000 of each.
"""

import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset, Split, without_labels
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.data.gzip_files import find_file, first_bytes, read_unzipped
from fewstep.experiments.data.safe_unpickle import NotPlain, load_plain
from fewstep.files import resolved
from fewstep.registry import added

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
    """50,000 + 10,000 photographs in 10 classes, 32x32 RGB, from ``root`` or a folder in it.

    Attributes:
        labels: whether to take the classes; most papers' models have none.
    """

    suggested_backbone: ClassVar[str] = "unet_32"

    root: str = "data"
    labels: bool = added(True)

    def load(self) -> Dataset:
        whole = replace(load_cifar10(resolved(self.root)), is_="cifar10")
        return whole if self.labels else without_labels(whole)

    def placeholder(self) -> Dataset:
        return Expected((3, 32, 32), 50_000, 10_000, CLASSES if self.labels else 0).placeholder(
            "cifar10", torch.uint8
        )


def load_cifar10(root: Path, images: int = 10_000) -> Dataset:
    """CIFAR-10 at ``root``, in batches of ``images``; ``UserError`` for damaged files."""
    where, batches = _find_batches(root)
    seen: dict[bytes, str] = {}
    parsed: list[Batch] = []
    for name, raw in batches.items():
        file = f"{where}/{name}"
        if raw in seen:
            raise UserError(f"{file} holds the same as {seen[raw]}")
        seen[raw] = name
        parse = parse_binary if name.endswith(".bin") else parse_python
        x, y = parse(raw, file, images)
        if y.max() >= CLASSES:
            raise UserError(f"{file} has label {y.max()}, expected 0..{CLASSES - 1}")
        parsed.append((x, y))
    names = list(batches)
    name = f"{where}: {names[0]} to {names[4]} together"
    train = _split(parsed[:5], name, 5 * images // CLASSES)
    test = _split(parsed[5:], f"{where}/{names[5]}", images // CLASSES)
    return Dataset("cifar10", train, test, CLASSES)


def _split(batches: list[Batch], name: str, expected: int) -> Split:
    x, y = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    counts = np.bincount(y, minlength=CLASSES)
    for label, count in enumerate(counts):
        if count != expected:
            raise UserError(
                f"{name}: {count} images of class {label}, expected {expected} of each "
                f"(has a batch been put in another one's place?)"
            )
    pixels = torch.from_numpy(x.reshape(-1, 3, 32, 32))
    return Split(pixels, torch.from_numpy(y.astype(np.int64)))


def _find_batches(root: Path) -> tuple[str, dict[str, bytes]]:
    """The first place with six batches of one kind (folders, then archives), and their bytes."""
    folders = [root / folder for folder in FOLDERS]
    parts: dict[Path, list[str]] = {}
    for folder in folders:
        for names in (BINARY, PYTHON):
            files = {n: f for n in names if (f := find_file(folder, n)) is not None}
            if len(files) == len(names):
                return str(folder), {n: read_unzipped(f) for n, f in files.items()}
            parts.setdefault(folder, []).extend(files)
    for folder in folders:
        for archive in ARCHIVES:
            if (folder / archive).is_file():
                return str(folder / archive), _unpacked(folder / archive)
    fullest = max(folders, key=lambda folder: len(parts[folder]))
    if some := parts[fullest]:
        kinds = [names for names in (BINARY, PYTHON) if not set(names).isdisjoint(some)]
        lacking = [", ".join(n for n in names if n not in some) for names in kinds]
        raise UserError(f"{fullest} has {', '.join(some)}, but no {', or else '.join(lacking)}")
    raise UserError(
        f"cifar10 not found: looked in {', '.join(map(str, folders))} for "
        f"{', '.join(ARCHIVES)}, or their files {BINARY[0]}, ... or {PYTHON[0]}, ...; "
        "set data.root=DIR or FEWSTEP_DATA"
    )


def _unpacked(archive: Path) -> dict[str, bytes]:
    batches: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz" if archive.suffix == ".gz" else "r:") as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in (*BINARY, *PYTHON):
                    continue
                if name in batches:
                    raise UserError(f"{archive} holds {name} twice")
                content = tar.extractfile(member)
                assert content is not None
                batches[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        start = first_bytes(archive.read_bytes()[:64])
        raise UserError(f"{archive} is not a complete tar file ({error}): {start}") from None
    names = BINARY if BINARY[0] in batches else PYTHON
    if missing := [name for name in names if name not in batches]:
        raise UserError(f"{archive} holds no {', '.join(missing)}")
    if len(batches) > len(names):
        raise UserError(f"{archive} holds binary and python batches: {', '.join(batches)}")
    return {name: batches[name] for name in names}


def parse_binary(raw: bytes, file: str, images: int) -> Batch:
    """Raises ``UserError`` unless there are so many ``images``, not a byte more."""
    record, n = 1 + PIXELS, len(raw)
    if n != images * record:
        expected = f"expected {images * record} ({images} records of {record})"
        raise UserError(f"{file} has {n} bytes, {expected}: {first_bytes(raw)}")
    rows = np.frombuffer(raw, np.uint8).reshape(images, record)
    return rows[:, 1:], rows[:, 0]


def parse_python(raw: bytes, file: str, images: int) -> Batch:
    """Raises ``UserError`` unless it is a pickle of so many ``images``, and of this batch."""
    try:
        batch = load_plain(raw)
    except NotPlain as error:
        raise UserError(f"{file} is no batch of CIFAR-10 ({error}): {first_bytes(raw)}") from None
    if not isinstance(batch, Mapping):
        raise UserError(f"{file} holds a {type(batch).__name__}, expected a dict")
    content = {k.decode() if isinstance(k, bytes) else str(k): v for k, v in batch.items()}
    if absent := [name for name in ("data", "labels") if name not in content]:
        raise UserError(f"{file} has no {absent[0]!r} (it has {', '.join(content) or 'nothing'})")
    try:
        x, y = np.asarray(content["data"]), np.asarray(content["labels"])
    except ValueError as error:  # of lists that are no array
        raise UserError(f"{file}: data and labels must be arrays ({error})") from None
    if x.dtype != np.uint8 or x.shape != (images, PIXELS):
        raise UserError(f"{file} has data {x.dtype} {x.shape}, expected uint8 {(images, PIXELS)}")
    if y.shape != (images,) or y.dtype.kind not in "iu" or y.min() < 0:
        raise UserError(f"{file} has labels {y.dtype} {y.shape}, expected {images} of 0..9")
    label = content.get("batch_label", b"")
    label = label.decode(errors="replace") if isinstance(label, bytes) else str(label)
    name = Path(file).name
    expected = "testing batch" if name == "test_batch" else f"training batch {name[-1]}"
    if label and not label.startswith(expected):
        raise UserError(f"{file} calls itself {label!r}, expected {expected!r}")
    return x, y.clip(0, 255).astype(np.uint8)
