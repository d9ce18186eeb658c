"""The setting ``expected`` of a data set: its shapes, so that ``--plan`` needs no files."""

import math
import re
from dataclasses import dataclass
from typing import Self

import torch

from fewstep.errors import UserError
from fewstep.experiments.data.base import Dataset, Split

EXAMPLE = "4x32x32 classes=1000 train=1281167 test=50000"


@dataclass(frozen=True)
class Expected:
    """Shape of one example, classes (0: no labels), and how many examples each split has."""

    shape: tuple[int, ...]
    train: int
    test: int
    classes: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """``text`` like ``EXAMPLE``, classes only where there are labels; else a ``UserError``."""
        pattern = r"(\d+(?:x\d+)*)( classes=\d+)?( train=\d+)( test=\d+)"
        found = re.fullmatch(pattern, " ".join(text.split()))
        shape, *numbers = found.groups() if found else ("0",)
        sizes = tuple(map(int, shape.split("x")))
        given = {name: int(n) for name, n in (part.strip().split("=") for part in numbers if part)}
        if not found or min(*sizes, given["train"], given["test"]) < 1:
            raise UserError(f"data.expected must be like {EXAMPLE!r}, got {text!r}")
        return cls(sizes, given["train"], given["test"], given.get("classes", 0))

    def placeholder(self, name: str, dtype: torch.dtype, drawn: bool = False) -> Dataset:
        """A data set of these shapes, all zero, that takes no memory but for its labels.

        ``drawn``: whether each example has a standard deviation.
        """

        def split(count: int) -> Split:
            y = torch.arange(count) % self.classes if self.classes else None
            x = torch.zeros((), dtype=dtype).expand(count, *self.shape)
            return Split(x, y, x if drawn else None)

        return Dataset(name, split(self.train), split(self.test), self.classes)

    def check(self, dataset: Dataset) -> Dataset:
        """``dataset``; a ``UserError`` unless it has these shapes."""
        sizes = len(dataset.train), len(dataset.test)
        have = type(self)(dataset.shape, *sizes, dataset.num_classes)
        if have != self:
            raise UserError(f"{dataset.name} has {have}, but data.expected says {self}")
        return dataset

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        labels = f" with {self.classes} classes" if self.classes else ""
        return f"{self.train:,} + {self.test:,} of {shape}{labels}"


def nbytes(dataset: Dataset) -> int:
    """Bytes that the arrays of both splits have."""
    arrays = [a for s in (dataset.train, dataset.test) for a in (s.x, s.y, s.std) if a is not None]
    return sum(math.prod(a.shape) * a.element_size() for a in arrays)
