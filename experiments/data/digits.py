"""scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels in 10 classes; no file needed."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from fewstep.errors import check_range
from fewstep.experiments.data.base import DATA, Dataset, Split, without_labels
from fewstep.experiments.data.split import stratified
from fewstep.registry import added


@DATA.register("digits")
@dataclass(frozen=True)
class Digits:
    """Grey levels 0..16 become uint8 by ``round(v * 255 / 16)``; the split is stratified.

    The file runs writer by writer, so its order is shuffled before splitting.

    Attributes:
        test_images: how many are held out. labels: whether to take the classes.
    """

    suggested_backbone: ClassVar[str] = "dit_digits"

    test_images: int = 597
    labels: bool = added(True)

    def __post_init__(self) -> None:
        check_range("digits.test_images", self.test_images, 1, 1796)

    def load(self) -> Dataset:
        rows = np.loadtxt(digits_file(), delimiter=",")  # of 64 pixels and a label
        pixels = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)
        x = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
        y = torch.from_numpy(rows[:, -1].astype(np.int64))
        train, test = stratified(y.numpy(), self.test_images)
        whole = Dataset("digits", Split(x[train], y[train]), Split(x[test], y[test]), 10)
        return whole if self.labels else without_labels(whole)


def digits_file() -> Path:
    """Where scikit-learn has them. To import its ``load_digits`` would take a run two seconds."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("datasets") / "data/digits.csv.gz"
