"""A data set: two half circles in the plane, with a label for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.errors import check_range
from fewstep.experiments.data import Dataset, Split


@dataclass(frozen=True)
class Moons:
    """Two interleaved half circles with Gaussian noise; vectors (N, 2)."""

    suggested_backbone: ClassVar[str] = "mlp"

    noise: float = 0.1
    examples: int = 4096

    def __post_init__(self) -> None:
        check_range("data.noise", self.noise, 0)
        check_range("data.examples", self.examples, 2)

    def load(self) -> Dataset:
        """Both splits; their seeds are part of the data set, so that all runs see the same."""
        return Dataset("moons", self._split(seed=0), self._split(seed=1), num_classes=2)

    def _split(self, seed: int) -> Split:
        g = torch.Generator().manual_seed(seed)
        y = torch.randint(2, (self.examples,), generator=g)
        angle = math.pi * torch.rand(self.examples, generator=g)
        sign = 1 - 2 * y
        x = torch.stack([sign * angle.cos() + y - 0.5, sign * angle.sin() + y / 2 - 0.25], dim=1)
        return Split((x + self.noise * torch.randn(x.shape, generator=g)).float(), y)
