"""Feature extractors: what a Frechet distance compares.

Only the Inception network gives "FID"; a distance in the features of a network trained here is
named for it (``FD-digits-cnn@597``), and the hash of its weights is part of the metric's identity.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from filelock import FileLock
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.rundir import write_json
from fewstep.experiments.seeds import Order, generator
from fewstep.registry import Registry

BATCH = 500


@dataclass(frozen=True)
class Features:
    """A ready extractor. ``extract``: raw data (N, ...) -> float64 features (N, D)."""

    name: str
    sha256: str
    extract: Callable[[Tensor], np.ndarray]


class Extractor(Protocol):
    """A frozen dataclass of settings that makes ``Features`` for a data set."""

    def check(self, dataset: Dataset) -> None:
        """Raise ``UserError`` where ``dataset`` is nothing for this extractor."""
        ...

    def prepare(self, dataset: Dataset, cache: Path) -> Features: ...


EXTRACTORS: Registry[Extractor] = Registry("extractor", "fewstep.extractors")


@EXTRACTORS.register("raw")
@dataclass(frozen=True)
class Raw:
    """The values themselves: pixels scaled to [-1, 1], or the vector."""

    def check(self, dataset: Dataset) -> None:
        pass

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        def extract(x: Tensor) -> np.ndarray:
            return to_model(x).flatten(1).double().numpy()

        return Features("raw", hashlib.sha256(b"raw").hexdigest(), extract)


@EXTRACTORS.register("cnn")
@dataclass(frozen=True)
class CNN:
    """Penultimate features of a small classifier, trained here on the training split.

    Training is deterministic (fixed seed, one thread) and done once: the weights are kept in the
    cache under a name made of the data's hash and these settings.

    Attributes:
        width: channels of the first layer. features: D.
        steps, batch_size, lr: of its training with AdamW and a cosine schedule.
    """

    width: int = 32
    features: int = 64
    steps: int = 600
    batch_size: int = 128
    lr: float = 3e-3

    def __post_init__(self) -> None:
        for name in ("width", "features", "steps", "batch_size"):
            check_range(f"extractor.{name}", getattr(self, name), 1)

    def check(self, dataset: Dataset) -> None:
        if not dataset.is_image or not dataset.num_classes:
            raise UserError(
                f"extractor cnn needs labelled images; {dataset.name} has shape {dataset.shape} "
                f"and {dataset.num_classes} classes (choices here: raw)"
            )

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        self.check(dataset)
        network = Classifier(dataset.shape, dataset.num_classes, self.width, self.features)
        settings = json.dumps(asdict(self), sort_keys=True) + dataset.train.sha256
        name = f"{dataset.name}-cnn-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        file = cache / "extractors" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # the first run trains it, the others wait
            if not file.exists():
                self._train(network, dataset)
                _write(file, save(network.state_dict()))
                accuracy = _accuracy(network, dataset)
                write_json(file.with_suffix(".json"), {**asdict(self), "test_accuracy": accuracy})
        network.load_state_dict(load_file(file))
        network.eval()
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return Features("cnn", sha256, lambda x: _in_batches(network.features, x))

    def _train(self, network: Classifier, dataset: Dataset) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in another order would be another extractor
        try:
            self._fit(network, dataset)
        finally:
            torch.set_num_threads(threads)

    def _fit(self, network: Classifier, dataset: Dataset) -> None:
        g = generator(0, "extractor")
        for p in network.parameters():
            if p.dim() > 1:
                nn.init.kaiming_normal_(p, generator=g)
            else:
                nn.init.zeros_(p)
        optimiser = torch.optim.AdamW(network.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        order = Order(0, len(dataset.train), self.batch_size)
        labels = dataset.train.y
        assert labels is not None
        for step in range(self.steps):
            index = order.batch(step)
            loss = nnf.cross_entropy(network(to_model(dataset.train.x[index])), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


class Classifier(nn.Module):
    """Three convolutions, mean pooling, ``features`` features, a linear head."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, width: int, features: int) -> None:
        super().__init__()
        stride = 2 if shape[1] > 16 else 1
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, stride=stride, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        side = shape[1]
        for s in (stride, 2, 2):
            side = (side - 1) // s + 1
        self.hidden = nn.Linear(2 * width * side**2, features)
        self.head = nn.Linear(features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, features)."""
        return nnf.silu(self.hidden(self.convolutions(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _in_batches(f: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([f(to_model(part)) for part in x.split(BATCH)]).double().numpy()


def _accuracy(network: Classifier, dataset: Dataset) -> float:
    predicted = _in_batches(network, dataset.test.x).argmax(1)
    assert dataset.test.y is not None
    return float((predicted == dataset.test.y.numpy()).mean())


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, file)
