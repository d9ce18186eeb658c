"""Random convolutions: untrained features, as a check on trained ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.errors import check_fields
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.extractors import base
from fewstep.experiments.rng import generator

SMALLEST = 8  # pixels: two poolings and a grid of 2 x 2 are left of them


@base.EXTRACTORS.register("random_conv")
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
        check_fields("extractor", self, "features width", 1)

    def check(self, dataset: Dataset) -> None:
        base.check_images("random_conv", dataset)
        if min(dataset.shape[1:]) < SMALLEST:
            smallest = f"images of at least {SMALLEST}x{SMALLEST}"
            raise base.unfit("random_conv", smallest, dataset, f"shape {dataset.shape}")

    def prepare(self, dataset: Dataset, cache: Path) -> base.Features:
        self.check(dataset)
        network = self._network(dataset.shape[0])
        sha256 = hashlib.sha256(save(network.state_dict())).hexdigest()

        def features(x: Tensor) -> Tensor:
            return network(to_model(x))

        return base.Features("random_conv", sha256, lambda x: base.in_batches(features, x))

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
