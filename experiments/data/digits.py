"""scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels in 10 classes; no file needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fewstep.errors import check_range
from fewstep.experiments.data.base import DATA, Dataset, Split
from fewstep.experiments.data.holdout import stratified


@DATA.register("digits")
@dataclass(frozen=True)
class Digits:
    """Grey levels 0..16 become uint8 by ``round(v * 255 / 16)``; the split is stratified.

    The file runs writer by writer, so its order is shuffled before splitting.
    """

    suggested_backbone: ClassVar[str] = "dit_digits"

    test_images: int = 597

    def __post_init__(self) -> None:
        check_range("digits.test_images", self.test_images, 1, 1796)

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # costs a second: only runs on digits pay

        raw = load_digits()
        x = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
        y = torch.from_numpy(raw.target.astype(np.int64))
        train, test = stratified(y.numpy(), self.test_images)
        return Dataset("digits", Split(x[train], y[train]), Split(x[test], y[test]), 10)
