"""A Frechet distance with an identity: two values may stand in one table only if it is the same."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from fewstep.experiments.data import Dataset, Split
from fewstep.experiments.extractors import EXTRACTORS, Features
from fewstep.experiments.frechet import GaussianStats, frechet_distance
from fewstep.experiments.rundir import Json
from fewstep.experiments.seeds import generator
from fewstep.experiments.settings import Evaluation


def short_hash(value: Any) -> str:
    """12 hex digits of a JSON value's hash."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


class Metric:
    """The distance ``evaluation`` asks for on ``dataset``; what can be kept is in ``cache``."""

    def __init__(self, evaluation: Evaluation, dataset: Dataset, cache: Path) -> None:
        self.dataset, self.cache = dataset, cache
        self.samples = evaluation.samples or len(dataset.test)
        self.split = evaluation.reference
        name = evaluation.extractor
        if name == "auto":
            name = "cnn" if dataset.is_image and dataset.num_classes else "raw"
        self.features: Features = EXTRACTORS[name].prepare(dataset, cache)
        self.preprocess = "clip-round-uint8" if dataset.is_image else "none"

    @cached_property
    def identity(self) -> Json:
        """Everything that must be equal for two values to be compared, and a label and an id."""
        reference = self._split(self.split)
        identity: Json = {
            "name": "FD",
            "extractor": self.features.name,
            "extractor_sha256": self.features.sha256,
            "data": self.dataset.name,
            "samples": self.samples,
            "reference": self.split,
            "reference_sha256": reference.sha256,
            "reference_samples": len(reference),
            "resize": "none",
            "rounding": self.preprocess,
        }
        label = f"FD-{self.dataset.name}-{self.features.name}@{self.samples}"
        return {**identity, "label": label, "id": short_hash(identity)}

    def distance(self, x: Tensor) -> float:
        """From raw samples (N, ...) to the reference split.

        Raises:
            AssertionError: not exactly N samples.
        """
        assert len(x) == self.samples, f"{len(x)} samples where {self.samples} were asked for"
        return frechet_distance(self._stats(x), self.reference)

    @cached_property
    def reference(self) -> GaussianStats:
        """Statistics of the whole reference split, computed by whoever comes first."""
        split = self._split(self.split)
        name = short_hash([split.sha256, self.features.sha256, self.preprocess])
        file = self.cache / "references" / f"{self.dataset.name}-{self.split}-{name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                temporary = file.with_suffix(f".{os.getpid()}")
                self._stats(split.x).write(temporary)
                os.replace(temporary, file)
        return GaussianStats.read(file)

    @cached_property
    def floor(self) -> float | None:
        """Real against real: N images of the other split; None where it has fewer than N."""
        other = self._split("test" if self.split == "train" else "train").x
        if len(other) < self.samples:
            return None
        index = torch.randperm(len(other), generator=generator(0, "floor"))[: self.samples]
        return self.distance(other[index])

    def _stats(self, x: Tensor) -> GaussianStats:
        name = f"{self.features.name}-{self.features.sha256[:12]}"
        return GaussianStats.from_features(self.features.extract(x), name, self.preprocess)

    def _split(self, name: str) -> Split:
        return self.dataset.train if name == "train" else self.dataset.test
