"""Which images are held out, where a data set has no test split."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
SHUFFLE = 1797  # fixes the split for good: it is part of the data set, not of a run's seed


def stratified(y: np.ndarray, test: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (train, test), shuffled, with every class' share within one image of its due.

    A systematic sample: sort by class, then take ``test`` evenly spaced positions.
    """
    order = np.random.default_rng(SHUFFLE).permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    picked = np.zeros(len(y), dtype=bool)
    picked[by_class[(np.arange(test) * len(y) + len(y) // 2) // test]] = True
    in_test = picked[order]
    return torch.from_numpy(order[~in_test]), torch.from_numpy(order[in_test])


def shuffled(items: Sequence[T]) -> list[T]:
    """``items`` in another order, always the same: files come class by class."""
    return [items[i] for i in np.random.default_rng(SHUFFLE).permutation(len(items))]
