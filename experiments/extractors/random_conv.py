"""Random convolutions: features that nobody has trained, as a check on those that somebody has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.extractors.base import EXTRACTORS, Features, check_images, in_batches
from fewstep.experiments.seeds import generator

SMALLEST = 8  # pixels: two poolings and a grid of 2 x 2 are left of them


@EXTRACTORS.register("random_conv")
@dataclass(frozen=True)
class RandomConv:
    """Features of a convolutional network with random weights (He et al. 2015), from a fixed seed.

    Attributes:
        features: D. width: channels of the first layer; the second has twice as many.
        seed: of the weights, whose hash is the extractor's.
    """

    features: int = 64
    width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "width"):
            check_range(f"extractor.{name}", getattr(self, name), 1)

    def check(self, dataset: Dataset) -> None:
        check_images("random_conv", dataset)
        if min(dataset.shape[1:]) < SMALLEST:
            raise UserError(
                f"extractor random_conv needs images of at least {SMALLEST}x{SMALLEST}; "
                f"{dataset.name} has shape {dataset.shape}"
            )

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        self.check(dataset)
        network = self._network(dataset.shape[0])
        sha256 = hashlib.sha256(save(network.state_dict())).hexdigest()

        def features(x: Tensor) -> Tensor:
            return network(to_model(x))

        return Features("random_conv", sha256, lambda x: in_batches(features, x))

    def _network(self, channels: int) -> nn.Sequential:
        network = nn.Sequential(
            nn.Conv2d(channels, self.width, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * self.width, self.features, bias=False),
        )
        g = generator(self.seed, "random_conv")
        for p in network.parameters():
            if p.dim() > 1:
                nn.init.kaiming_normal_(p, generator=g)
            else:  # thresholds: without any, x and -x would differ by little
                p.data = 0.5 * torch.randn(p.shape, generator=g)
        return network.eval().requires_grad_(False)
