"""MNIST and Fashion-MNIST from the official idx files, gzipped or not. Nothing is downloaded.

An idx file is big-endian: a magic number (0x0803: uint8 in three dimensions, 0x0801: in one), one
uint32 per dimension, then the bytes (http://yann.lecun.com/exdb/mnist). What a file holds is
compared with the published one, so that a file in another one's place is found.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset, Split, without_labels
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.data.gzip_files import find_file, read_unzipped
from fewstep.files import resolved
from fewstep.registry import added

IMAGES, LABELS = 0x0803, 0x0801  # the low byte is the number of dimensions
FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k")
              for kind in ("images-idx3", "labels-idx1"))  # fmt: skip

# sha256 of what the official files hold, unpacked
OFFICIAL = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


@DATA.register("mnist")
@dataclass(frozen=True)
class MNIST:
    """60,000 + 10,000 handwritten digits, 28x28 grey, from ``root``/mnist or ``root`` itself.

    Attributes:
        labels: whether to take the classes.
    """

    suggested_backbone: ClassVar[str] = "dit_mnist"

    root: str = "data"
    labels: bool = added(True)

    def load(self) -> Dataset:
        return self._of("mnist", ("mnist", "."))

    def _of(self, name: str, folders: tuple[str, ...]) -> Dataset:
        whole = replace(load_idx(name, self.root, folders, OFFICIAL[name]), is_=name)
        return whole if self.labels else without_labels(whole)

    def placeholder(self) -> Dataset:
        return Expected((1, 28, 28), 60_000, 10_000, 10 if self.labels else 0).placeholder(
            type(self).__name__, torch.uint8
        )


@DATA.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """60,000 + 10,000 articles of clothing, 28x28 grey, from ``root``/fashion-mnist or ``root``."""

    def load(self) -> Dataset:
        return self._of("fashion_mnist", ("fashion-mnist", "fashion_mnist", "."))


def load_idx(
    name: str, root: str, folders: tuple[str, ...], sha256: Sequence[str] | None = None
) -> Dataset:
    """The data set in the first of ``root``'s ``folders`` that holds all four ``FILES``.

    ``sha256`` of what each must hold, unpacked; None takes any well-formed files. Raises
    ``UserError`` where no folder has all four, or a file is damaged or another one.
    """
    directories = [resolved(root) / folder for folder in folders]
    for directory in directories:
        files = [file for name in FILES if (file := find_file(directory, name)) is not None]
        if len(files) < len(FILES):
            continue
        contents = [read_unzipped(file) for file in files]
        arrays = list(map(parse_idx, contents, files, [IMAGES, LABELS] * 2))
        for content, file, official in zip(contents, files, sha256 or (), strict=False):
            _check_official(name, content, file, official)
        train, test = (_split(arrays[i], arrays[i + 1], files[i], files[i + 1]) for i in (0, 2))
        return Dataset(name, train, test, 10)
    raise UserError(
        f"{name} not found: looked in {', '.join(map(str, directories))} for "
        f"{', '.join(FILES)} (each with or without .gz); set data.root=DIR or FEWSTEP_DATA"
    )


def _check_official(name: str, content: bytes, file: Path, expected: str) -> None:
    """Refuse another file than the published one, and say which it is where that is known."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == expected:
        return
    other = f"sha256 {digest[:12]}"
    for data, hashes in OFFICIAL.items():
        if digest in hashes:
            other = f"it is {data}'s {FILES[hashes.index(digest)]}"
    named = f"{name}'s {file.name.removesuffix('.gz')}"
    raise UserError(f"{file} is not {named}: {other}, not {expected[:12]}")


def parse_idx(raw: bytes, path: Path, magic: int) -> NDArray[np.uint8]:
    """The array in the idx file ``raw``; raises ``UserError`` on another magic number or length."""
    dims = magic & 0xFF
    header = 4 + 4 * dims
    if len(raw) < header:
        raise UserError(f"{path} is truncated: {len(raw)} bytes, its header alone has {header}")
    number, *shape = (int(v) for v in np.frombuffer(raw, ">u4", 1 + dims))
    if number != magic:
        raise UserError(f"{path} has magic number 0x{number:08x}, expected 0x{magic:08x}")
    expected = header + int(np.prod(shape, dtype=object))  # Python integers: cannot overflow
    if len(raw) != expected or 0 in shape:
        named = f"expected {expected} for the shape {tuple(shape)} in its header"
        raise UserError(f"{path} has {len(raw)} bytes, {named}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _split(x: NDArray[np.uint8], y: NDArray[np.uint8], images: Path, labels: Path) -> Split:
    if len(x) != len(y):
        raise UserError(f"{images} has {len(x)} images, but {labels} has {len(y)} labels")
    if y.max() > 9:
        raise UserError(f"{labels} has label {y.max()}, expected 0..9")
    # a copy: the bytes read from the file are immutable, and torch has no read-only tensors
    return Split(torch.from_numpy(x.copy()).unsqueeze(1), torch.from_numpy(y.astype(np.int64)))
