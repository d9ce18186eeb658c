"""What a data set is: two splits of images, vectors or latents, and the way to the model."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.registry import Registry

KINDS = "uint8 images (N, C, H, W), float32 vectors (N, D), float16 or float32 latents (N, C, H, W)"


class Rows(NamedTuple):
    """Some examples as they are kept, on the CPU: those of a batch.

    ``std`` is there for latents that are drawn anew each time, ``eps`` for pairs of a teacher.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    std: torch.Tensor | None = None
    eps: torch.Tensor | None = None


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Copies of the rows at ``index``, both on the CPU.

    By numpy, which copies in the calling thread: torch would start threads for each copy.
    """
    return torch.from_numpy(tensor.numpy()[index.numpy()])


@dataclass(frozen=True, eq=False)
class Split:
    """One split. ``x`` may be memory-mapped, and then larger than the memory.

    Attributes:
        x: uint8 images (N, C, H, W), float32 vectors (N, D), float16 or float32 latents
            (N, C, H, W). y: int64 classes (N,), float32 condition vectors (N, k), or None.
        std: of latents that are normally distributed about ``x``, shaped like it: in training each
            is drawn anew. Everything else takes ``x``.
        stored_sha256: the hash as it is known from where the split is kept: reading what is
            memory-mapped again, just for that, would take as long as an epoch.

    Raises ``UserError`` for another shape or dtype, or where each example has not a label.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    std: torch.Tensor | None = None
    stored_sha256: str | None = None

    def __post_init__(self) -> None:
        x, y, std, n = self.x, self.y, self.std, len(self.x)
        latent = (x.dtype, x.ndim) in ((torch.float16, 4), (torch.float32, 4))
        if not latent and (x.dtype, x.ndim) not in ((torch.uint8, 4), (torch.float32, 2)):
            raise UserError(f"a split has {_shown(x)} (choices: {KINDS})")
        labels = y is None or (y.dtype, y.ndim) in ((torch.int64, 1), (torch.float32, 2))
        if y is not None and not (labels and len(y) == n):
            raise UserError(
                f"labels must be int64 of shape ({n},) or float32 vectors ({n}, k), got {_shown(y)}"
            )
        if std is not None and not (latent and std.shape == x.shape and std.dtype == x.dtype):
            raise UserError(
                f"only latents have a standard deviation each, shaped like themselves; "
                f"got {_shown(std)} for {_shown(x)}"
            )

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: torch.Tensor) -> Rows:
        """Copies of the examples at ``index``, (B,) int64."""
        y, std = (None if a is None else take(a, index) for a in (self.y, self.std))
        return Rows(take(self.x, index), y, std)

    @cached_property
    def sha256(self) -> str:
        """Hash of the shape, dtype and bytes of all there is: the identity of a reference."""
        if self.stored_sha256 is not None:
            return self.stored_sha256
        digest, own = hashlib.sha256(), hashlib.sha256()
        hash_array(digest, self.x.contiguous().numpy())
        if self.y is None:
            digest.update(b"none")
        else:
            hash_array(digest, self.y.contiguous().numpy())
        if self.std is not None:
            hash_array(own, self.std.contiguous().numpy())
            digest.update(own.digest())
        return digest.hexdigest()


def _shown(x: torch.Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}"


def hash_array(digest: "hashlib._Hash", array: NDArray[Any]) -> None:
    """Add an array's dtype, shape and bytes to ``digest``."""
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.data)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of one ``name``; labels are 0..num_classes - 1 (``num_classes = 0``: none).

    Splits whose ``y`` are vectors have no classes, and ``condition_dim`` is their length.

    Attributes:
        class_names: in the order of the labels; empty where classes have no names.
        notes: one line for each thing that was skipped, with the reason.
        is_: the public data set that it was checked to be (``public_data.KNOWN``); "" for none.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_: str = ""

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            names = f"{len(self.class_names)} class names for {self.num_classes} classes"
            raise UserError(f"{self.name}: {names}")
        train, test = (f"{s.x.dtype} {tuple(s.x.shape[1:])}" for s in (self.train, self.test))
        if train != test:
            raise UserError(f"{self.name}: train examples are {train}, test examples {test}")
        for part, y in (("train", self.train.y), ("test", self.test.y)):
            kind, first = _kind(y), _kind(self.train.y)
            if self.train.y is not None and y is not None and kind != first:
                raise UserError(f"{self.name}: train has {first}, {part} has {kind}")
            if self.num_classes and kind != "class labels":
                raise UserError(f"{self.name}: {self.num_classes} classes, but {part} has {kind}")
            if y is None or len(y) == 0:
                continue
            if y.is_floating_point() and not bool(y.isfinite().all()):
                raise UserError(f"{self.name}: {part} has conditions that are not finite")
            low, high, most = int(y.min()), int(y.max()), self.num_classes - 1
            if not y.is_floating_point() and not 0 <= low <= high <= most:
                raise UserError(
                    f"{self.name}: {part} labels span {low}..{high}, expected 0..{most}"
                )

    @property
    def is_image(self) -> bool:
        """Whether the examples are uint8 images."""
        return self.train.x.dtype == torch.uint8

    @property
    def condition_dim(self) -> int:
        """k of the condition vectors (N, k); 0 for none."""
        y = self.train.y
        return y.shape[1] if y is not None and y.ndim == 2 else 0

    @property
    def has_conditions(self) -> bool:
        """Whether there are class labels or condition vectors."""
        return self.num_classes > 0 or self.condition_dim > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W) or (D,)."""
        return tuple(self.train.x.shape[1:])


def without_labels(dataset: Dataset) -> Dataset:
    """``dataset`` without classes and condition vectors."""

    def plain(split: Split) -> Split:
        stored = split.stored_sha256
        if stored is not None and split.y is not None:  # reading all again would take an epoch
            stored = hashlib.sha256(f"{stored} without labels".encode()).hexdigest()
        return Split(split.x, None, split.std, stored)

    train, test = plain(dataset.train), plain(dataset.test)
    return replace(dataset, train=train, test=test, num_classes=0, class_names=())


class DataShape(NamedTuple):
    """What a network needs to know of a data set: ``shape`` of an example, and of its condition."""

    shape: tuple[int, ...]
    num_classes: int = 0
    condition_dim: int = 0
    is_image: bool = True


def _kind(y: torch.Tensor | None) -> str:
    if y is None:
        return "no labels"
    return f"condition vectors of {y.shape[1]} numbers" if y.ndim == 2 else "class labels"


@runtime_checkable
class DataSource(Protocol):
    """A frozen dataclass whose fields are the settings of a data set (int, float, str, bool).

    ``root``, the folder that data lies in, and fields made by ``registry.bookkeeping`` are no part
    of a run's key: they must not change the bytes that ``load`` gives. A setting that a later
    version adds is made by ``registry.added``, so that the keys of earlier runs remain.

    ``suggested_backbone`` is the name of the backbone a run takes by default. A method
    ``placeholder`` may give a data set of the same shapes without reading files, or None: a sweep
    can then be planned before its data are there.
    """

    suggested_backbone: ClassVar[str]

    def load(self) -> Dataset:
        """Both splits, on the CPU, the same at every call; ``UserError`` for damaged files."""
        ...


def placeholder_of(source: DataSource) -> Dataset | None:
    """A data set of the shapes of ``source``, whose files are not read; None if they are unknown.

    Its numbers are all zero.
    """
    method = getattr(source, "placeholder", None)
    placeholder: Dataset | None = None if method is None else method()
    return placeholder


@cache
def _shape_of(source: DataSource) -> DataShape:
    data = placeholder_of(source) or source.load()
    return DataShape(data.shape, data.num_classes, data.condition_dim, data.is_image)


def shape_of(source: DataSource) -> DataShape:
    """What the data look like: by the settings, else by the files.

    Raises ``UserError``: the settings do not tell, and the files are missing or damaged.
    """
    return _shape_of(source)  # type: ignore[arg-type]  # frozen, hence hashable


def like(shape: DataShape, rows: int, name: str = "random numbers") -> Dataset:
    """A data set of that shape made of random numbers, with ``rows`` examples in each split."""
    g = torch.Generator().manual_seed(0)
    size = (rows, *shape.shape)
    x, y = torch.randn(size, generator=g), None
    if shape.is_image:
        x = torch.randint(256, size, generator=g, dtype=torch.uint8)
    if shape.num_classes:
        y = torch.randint(shape.num_classes, (rows,), generator=g)
    elif shape.condition_dim:
        y = torch.randn(rows, shape.condition_dim, generator=g)
    split = Split(x, y)
    return Dataset(name, split, split, shape.num_classes)


DATA: Registry[DataSource] = Registry("data set", "fewstep.data")


def to_model(x: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [-1, 1]; vectors and latents -> float32, nothing else."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nearest": lambda x: ((x.clamp(-1, 1) + 1) * 127.5).round(),
    "half_up": lambda x: (x * 127.5 + 128).clamp(0, 255),
    "truncate": lambda x: ((x + 1) * 127.5).clamp(0, 255),
}
"""From [-1, 1] to levels whose whole part is kept.

The levels' formula 127.5 (x + 1) is the same, and what becomes of its fraction is not: the nearest
level, even ones at .5; the nearest, the upper one at .5; the level below.
"""


def to_uint8(x: torch.Tensor, rounding: str = "nearest") -> torch.Tensor:
    """Images (..., C, H, W) in [-1, 1] -> uint8: clipped, and rounded by one of ``ROUNDINGS``.

    By "nearest" the exact inverse of ``to_model``. Vectors (N, D) and uint8 images pass through.
    Raises ``FloatingPointError`` for pixels that are not finite; as uint8 they would pass for
    images.
    """
    if x.ndim < 3 or x.dtype == torch.uint8:
        return x
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("images hold NaN or infinite pixels")
    return ROUNDINGS[rounding](x.float()).to(torch.uint8)
