"""What a data set is: two splits of raw images (or vectors), and the way to the model and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch

from fewstep.errors import UserError
from fewstep.registry import Registry


@dataclass(frozen=True, eq=False)
class Split:
    """One split: ``x`` uint8 images (N, C, H, W) or float32 vectors (N, D); ``y`` int64 (N,).

    Raises:
        UserError: another shape or dtype, or a label for each example is not there.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None

    def __post_init__(self) -> None:
        kind = (self.x.dtype, self.x.ndim)
        if kind not in ((torch.uint8, 4), (torch.float32, 2)):
            raise UserError(
                f"a split has {self.x.dtype} of shape {tuple(self.x.shape)} "
                "(choices: uint8 images (N, C, H, W), float32 vectors (N, D))"
            )
        if self.y is not None and (self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]):
            raise UserError(
                f"labels must be int64 of shape ({len(self.x)},), "
                f"got {self.y.dtype} of shape {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def sha256(self) -> str:
        """Hash of the shape, dtype and bytes of ``x`` and ``y``: the identity of a reference."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.y):
            if tensor is None:
                digest.update(b"none")
                continue
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of one ``name``; labels are 0..num_classes - 1 (``num_classes = 0``: none)."""

    name: str
    train: Split
    test: Split
    num_classes: int

    def __post_init__(self) -> None:
        if (
            self.train.x.shape[1:] != self.test.x.shape[1:]
            or self.train.x.dtype != self.test.x.dtype
        ):
            raise UserError(
                f"{self.name}: train examples are {self.train.x.dtype} {self.shape}, "
                f"test examples {self.test.x.dtype} {tuple(self.test.x.shape[1:])}"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            if self.num_classes and split.y is None:
                raise UserError(f"{self.name}: {self.num_classes} classes, but no {part} labels")
            if split.y is None or len(split) == 0:
                continue
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"{self.name}: {part} labels span {low}..{high}, "
                    f"expected 0..{self.num_classes - 1}"
                )

    @property
    def is_image(self) -> bool:
        return self.train.x.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W) or (D,)."""
        return tuple(self.train.x.shape[1:])


@runtime_checkable
class DataSource(Protocol):
    """A frozen dataclass whose fields are the settings of a data set (int, float, str, bool).

    ``suggested_backbone`` is the name of the backbone a run takes when it is told none.
    """

    suggested_backbone: ClassVar[str]

    def load(self) -> Dataset:
        """Both splits, in memory and on the CPU; the same bytes at every call.

        Raises:
            UserError: files that are missing or damaged.
        """
        ...


DATA: Registry[DataSource] = Registry("data set", "fewstep.data")


def to_model(x: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [-1, 1]; float vectors pass through as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Images (..., C, H, W) in [-1, 1] -> uint8: clip, then round to the nearest level.

    The exact inverse of ``to_model``. Vectors (N, D) and uint8 images pass through.

    Raises:
        FloatingPointError: pixels that are not finite; as uint8 they would pass for images.
    """
    if x.ndim < 3 or x.dtype == torch.uint8:
        return x
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("images hold NaN or infinite pixels")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
