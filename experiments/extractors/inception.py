"""The Inception network of the field's FID, through torch-fidelity (extra ``fewstep[fid]``).

The weights are those of TensorFlow's inception-2015-12-05 in PyTorch's format, which pytorch-fid
and torch-fidelity publish under names that end in -6726825d.pth. The user brings the file.

One pass gives three layers (TensorFlow's names; torch-fidelity's are in util_convert_inception_
weights.py):

    ""        pool_3, D = 2048
    logits    pool_3 times the weights of softmax/logits without its bias, D = 1008, as ADM's
              evaluator and torch-fidelity take them for the Inception Score
    spatial   mixed_6/conv, the first 7 of its 192 channels after the ReLU, 17 x 17 x 7 in this
              order, D = 2023 (Nash et al. 2021, arXiv:2103.03841, sec. 4; ADM's evaluator)
"""

import importlib
import importlib.util
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data import Dataset
from fewstep.experiments.extractors import base
from fewstep.files import resolved

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PACKAGE = "torch_fidelity"
SIZE = 299
RESIZES = {"tf1": f"tf1-bilinear-{SIZE}", "clean": f"pil-bicubic-{SIZE}"}  # a metric's id has these
CHANNELS = 7  # of the spatial layer: 2,023 numbers, about as many as pool_3 has


@base.EXTRACTORS.register("inception")
@dataclass(frozen=True)
class Inception:
    """Inception-v3 pool features, D = 2048, after TensorFlow's resize to 299 x 299: the one of FID.

    Grey images are given three equal channels, as is usual. With resize=clean, it is clean-fid's
    (Parmar et al. 2022, arXiv:2104.11222): Pillow's bicubic, which filters before it samples.

    Attributes:
        weights: path of the published weights (pt_inception-2015-12-05-6726825d.pth).
        sha256: what the file must be; with any other than the published one, a distance is not FID.
        batch_size: images at a time.
        resize: tf1 | clean; with the latter, a distance is not FID.
    """

    layer_names: ClassVar[tuple[str, ...]] = (base.LOGITS, base.SPATIAL)

    weights: str = ""
    sha256: str = PUBLISHED
    batch_size: int = 50
    resize: str = "tf1"

    def __post_init__(self) -> None:
        check_choice("extractor.resize", self.resize, RESIZES)

    def check(self, dataset: Dataset) -> None:
        base.check_images("inception", dataset, rgb=True)
        if not self.weights:
            raise UserError(
                "extractor inception needs its weights: write "
                "{name: inception, weights: PATH/pt_inception-2015-12-05-6726825d.pth}"
            )
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError("extractor inception needs torch-fidelity: pip install 'fewstep[fid]'")
        if not resolved(self.weights).is_file():
            base.check_weights("inception", "weights", resolved(self.weights), self.sha256)

    def content(self) -> str | None:
        return None if self.sha256 else base.content_sha256([resolved(self.weights)])

    def prepare(self, dataset: Dataset, cache: Path) -> base.Features:
        self.check(dataset)
        file = resolved(self.weights)
        sha256 = base.check_weights("inception", "weights", file, self.sha256)
        network = _Network(file, self.resize)

        def layers(x: Tensor, names: Collection[str]) -> dict[str, np.ndarray]:
            parts = [network(part, names) for part in x.split(self.batch_size)]
            return {n: torch.cat([part[n] for part in parts]).double().numpy() for n in names}

        return base.Features(
            "inception" if self.resize == "tf1" else f"inception-{self.resize}",
            sha256,
            lambda x: layers(x, [base.MAIN])[base.MAIN],
            resize=RESIZES[self.resize],
            is_fid=sha256 == PUBLISHED and self.resize == "tf1",
            layers=layers,
        )


class _Network:
    """The network on the accelerator, with all three layers of a pass."""

    def __init__(self, weights: Path, resize: str) -> None:
        self.device = base.accelerator()
        layers = ["2048", "logits_unbiased"]
        network = network_class()("inception", layers, feature_extractor_weights_path=str(weights))
        self.network = network.to(self.device)
        self._seen: list[Tensor] = []  # what the hooks give and take
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self.resize = resize
        if resize == "clean":
            network.Conv2d_1a_3x3.register_forward_pre_hook(self._replace)

    @torch.no_grad()
    def __call__(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Those layers (N, D) of uint8 images (N, 1 or 3, H, W), on the CPU."""
        x = base.as_rgb(x)
        self._seen = [cleanly_resized(x)] if self.resize == "clean" else []
        pool, logits = self.network(x.to(self.device))
        spatial = self._seen.pop()[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)
        found = {base.MAIN: pool, base.LOGITS: logits, base.SPATIAL: spatial}
        return {name: found[name].cpu() for name in names}

    def _keep(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self._seen.append(output)

    def _replace(self, module: nn.Module, given: Any) -> tuple[Tensor]:
        """Images resized here, in place of those that the network has resized itself."""
        return ((self._seen.pop().to(self.device) - 128) / 128,)


def cleanly_resized(x: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) -> float32 (N, C, 299, 299) from 0 to 255, as clean-fid does.

    Each channel by itself, by Pillow's bicubic filter, in float32; clipped, and not rounded.
    """
    from PIL import Image

    planes = x.flatten(0, 1).float().numpy()
    size = (SIZE, SIZE)
    resized = [
        np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in planes
    ]
    return torch.from_numpy(np.stack(resized)).clamp(0, 255).view(*x.shape[:2], *size)


def network_class() -> Any:
    """torch-fidelity's network, without the rest of its package.

    The package imports torchvision for its other networks, whose PyPI build a CPU-only torch
    cannot load; this one does without.
    """
    module = f"{PACKAGE}.feature_extractor_inceptionv3"
    if PACKAGE in sys.modules:
        return importlib.import_module(module).FeatureExtractorInceptionV3
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    sys.modules[PACKAGE] = package = ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or ())
    try:
        return importlib.import_module(module).FeatureExtractorInceptionV3
    finally:
        del sys.modules[PACKAGE]  # a later import gets the whole package
