"""Features without a network: the values themselves, and their principal components."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.extractors.base import EXTRACTORS, Features, read_cached, write_once


@EXTRACTORS.register("raw")
@dataclass(frozen=True)
class Raw:
    """The values themselves: pixels scaled to [-1, 1], or the vector."""

    def check(self, dataset: Dataset) -> None:
        pass

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        return Features("raw", hashlib.sha256(b"raw").hexdigest(), _values)


@EXTRACTORS.register("pca")
@dataclass(frozen=True)
class PCA:
    """The first principal components of the training split's values, centred, not whitened.

    Its hash is that of the training split and the dimension: the components themselves may differ
    in their last bits from machine to machine, which moves a distance by rounding alone.

    Attributes:
        dimension: how many components, D.
    """

    learns: ClassVar[bool] = True

    dimension: int = 64

    def __post_init__(self) -> None:
        check_range("extractor.dimension", self.dimension, 1)

    def check(self, dataset: Dataset) -> None:
        values, n = dataset.train.x[0].numel(), len(dataset.train)
        if self.dimension > min(values, n - 1):
            few = (
                f"{n} training examples of {values} values, too few for dimension {self.dimension}"
            )
            raise UserError(f"extractor pca: {dataset.name} has {few}")

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        self.check(dataset)
        settings = json.dumps(["pca", asdict(self), dataset.train.sha256])
        sha256 = hashlib.sha256(settings.encode()).hexdigest()
        file = cache / "extractors" / f"{dataset.name}-pca-{sha256[:12]}.safetensors"
        write_once(file, lambda path: save_file(self._fit(_values(dataset.train.x)), path))
        fitted = read_cached(file, load_file)
        mean, components = fitted["mean"].numpy(), fitted["components"].numpy()
        return Features(f"pca{self.dimension}", sha256, lambda x: (_values(x) - mean) @ components)

    def _fit(self, x: np.ndarray) -> dict[str, Tensor]:
        """``mean`` (values,) and orthonormal ``components`` (values, D), largest variance first."""
        mean = x.mean(axis=0)
        x = x - mean
        _, vectors = np.linalg.eigh(x.T @ x)
        largest = np.ascontiguousarray(vectors[:, ::-1][:, : self.dimension])
        return {"mean": torch.from_numpy(mean), "components": torch.from_numpy(largest)}


def _values(x: Tensor) -> np.ndarray:
    return to_model(x).flatten(1).double().numpy()
