"""An extractor: a vector and the products of its coordinates, as features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset
from fewstep.experiments.extractors.base import Features


@dataclass(frozen=True)
class Quadratic:
    """x and ``scale`` times all products of two of its coordinates, for vectors."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range("extractor.scale", self.scale, 0, open_low=True)

    def check(self, dataset: Dataset) -> None:
        """Refuse data that are not vectors."""
        if len(dataset.shape) != 1:
            raise UserError(
                f"extractor quadratic needs vectors, {dataset.name} has {dataset.shape}"
            )

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        """The features; their hash identifies what has no weights: formula and settings."""
        sha256 = hashlib.sha256(f"quadratic 1 {self.scale}".encode()).hexdigest()
        return Features("quadratic", sha256, self._extract)

    def _extract(self, x: Tensor) -> np.ndarray:
        i, j = torch.triu_indices(x.shape[1], x.shape[1])
        return torch.cat([x, self.scale * x[:, i] * x[:, j]], dim=1).double().numpy()
