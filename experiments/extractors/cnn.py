"""A small classifier trained here, and its penultimate features."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fewstep.errors import check_fields
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.extractors.base import (
    EXTRACTORS,
    Features,
    in_batches,
    read_cached,
    unfit,
    write_once,
)
from fewstep.experiments.rng import Order, generator
from fewstep.experiments.store.json_files import Json, read_json, write_json

OnStep = Callable[[int], None]
"""(steps done)"""


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

    learns: ClassVar[bool] = True

    width: int = 32
    features: int = 64
    steps: int = 600
    batch_size: int = 128
    lr: float = 3e-3

    def __post_init__(self) -> None:
        check_fields("extractor", self, "width features steps batch_size", 1)

    def check(self, dataset: Dataset) -> None:
        if not dataset.is_image or not dataset.num_classes:
            has = f"shape {dataset.shape} and {dataset.num_classes} classes"
            raise unfit("cnn", "labelled images", dataset, f"{has} (choices here: raw, pca)")

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        file = self.train(dataset, cache)
        network = self._network(dataset)
        network.load_state_dict(read_cached(file, load_file))
        network.eval()
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return Features(
            "cnn", sha256, lambda x: in_batches(lambda part: network.features(to_model(part)), x)
        )

    def train(self, dataset: Dataset, cache: Path, on_step: OnStep = lambda done: None) -> Path:
        """The file of the trained weights; the first process trains, the others wait."""
        self.check(dataset)
        settings = json.dumps(asdict(self), sort_keys=True) + dataset.train.sha256
        name = f"{dataset.name}-cnn-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        file = cache / "extractors" / f"{name}.safetensors"

        def make(path: Path) -> None:
            network = self._network(dataset)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # sums in another order would be another extractor
            try:
                self._train(network, dataset, on_step)
            finally:
                torch.set_num_threads(threads)
            accuracy = _accuracy(network, dataset)
            write_json(file.with_suffix(".json"), {**asdict(self), "test_accuracy": accuracy})
            path.write_bytes(save(network.state_dict()))

        write_once(file, make)
        return file

    @staticmethod
    def training_record(file: Path) -> Json:
        """Of the weights in ``file``: their settings and ``test_accuracy``."""
        return read_json(file.with_suffix(".json")) or {}

    def _network(self, dataset: Dataset) -> "Classifier":
        return Classifier(dataset.shape, dataset.num_classes, self.width, self.features)

    def _train(self, network: "Classifier", dataset: Dataset, on_step: OnStep) -> None:
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
            on_step(step + 1)


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


def _accuracy(network: Classifier, dataset: Dataset) -> float:
    predicted = in_batches(lambda part: network(to_model(part)), dataset.test.x).argmax(1)
    assert dataset.test.y is not None
    return float((predicted == dataset.test.y.numpy()).mean())
