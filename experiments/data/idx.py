"""MNIST and Fashion-MNIST from the official idx files, gzipped or not. Nothing is downloaded.

An idx file is big-endian: a magic number (0x0803: uint8 in three dimensions, 0x0801: in one), one
uint32 per dimension, then the bytes (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset, Split

IMAGES, LABELS = 0x0803, 0x0801  # the low byte is the number of dimensions
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@DATA.register("mnist")
@dataclass(frozen=True)
class MNIST:
    """60,000 + 10,000 handwritten digits, 28x28 grey, from ``root``/mnist or ``root`` itself."""

    suggested_backbone: ClassVar[str] = "dit_mnist"

    root: str = "data"

    def load(self) -> Dataset:
        return load_idx("mnist", self.root, ("mnist", "."))


@DATA.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMNIST:
    """60,000 + 10,000 articles of clothing, 28x28 grey, from ``root``/fashion-mnist or ``root``."""

    suggested_backbone: ClassVar[str] = "dit_mnist"

    root: str = "data"

    def load(self) -> Dataset:
        return load_idx("fashion_mnist", self.root, ("fashion-mnist", "fashion_mnist", "."))


def load_idx(name: str, root: str, folders: tuple[str, ...]) -> Dataset:
    """The data set in the first of ``root``'s ``folders`` that holds all four ``FILES``.

    Raises:
        UserError: no folder has all four, or a file is damaged.
    """
    places = [Path(root).expanduser() / folder for folder in folders]
    for place in places:
        files = [_find(place, file) for file in FILES]
        if None not in files:
            train_x, train_y, test_x, test_y = (file for file in files if file is not None)
            return Dataset(name, _split(train_x, train_y), _split(test_x, test_y), 10)
    raise UserError(
        f"{name} not found: looked in {', '.join(map(str, places))} for "
        f"{', '.join(FILES)} (each with or without .gz)"
    )


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array in one idx file, whose magic number must be ``magic`` and whose length must fit.

    Raises:
        UserError: naming the file, what was found and what was expected.
    """
    raw = _bytes(path)
    dims = magic & 0xFF
    header = 4 + 4 * dims
    if len(raw) < header:
        raise UserError(f"{path} is truncated: {len(raw)} bytes, its header alone has {header}")
    found, *shape = (int(v) for v in np.frombuffer(raw, ">u4", 1 + dims))
    if found != magic:
        raise UserError(f"{path} has magic number 0x{found:08x}, expected 0x{magic:08x}")
    expected = header + int(np.prod(shape, dtype=object))  # Python integers: cannot overflow
    if len(raw) != expected or 0 in shape:
        raise UserError(
            f"{path} has {len(raw)} bytes, expected {expected} for the shape "
            f"{tuple(shape)} in its header"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _find(place: Path, file: str) -> Path | None:
    return next((p for p in (place / file, place / f"{file}.gz") if p.is_file()), None)


def _bytes(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except gzip.BadGzipFile as error:
        raise UserError(f"{path} is not a valid gzip file ({error})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} is a truncated or damaged gzip file ({error})") from None


def _split(images: Path, labels: Path) -> Split:
    x, y = read_idx(images, IMAGES), read_idx(labels, LABELS)
    if len(x) != len(y):
        raise UserError(f"{images} has {len(x)} images, but {labels} has {len(y)} labels")
    if y.max() > 9:
        raise UserError(f"{labels} has label {y.max()}, expected 0..9")
    # a copy: the bytes read from the file are immutable, and torch has no read-only tensors
    return Split(torch.from_numpy(x.copy()).unsqueeze(1), torch.from_numpy(y.astype(np.int64)))
