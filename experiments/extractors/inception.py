"""The Inception network of the field's FID, through torch-fidelity (extra ``fewstep[fid]``).

The weights are those of TensorFlow's inception-2015-12-05 in PyTorch's format, which pytorch-fid
and torch-fidelity publish under names that end in -6726825d.pth. The user brings the file.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset
from fewstep.experiments.extractors import base
from fewstep.files import resolved

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PACKAGE = "torch_fidelity"


@base.EXTRACTORS.register("inception")
@dataclass(frozen=True)
class Inception:
    """Inception-v3 pool features, D = 2048, after TensorFlow's resize to 299 x 299: the one of FID.

    Grey images are given three equal channels, as is usual.

    Attributes:
        weights: path of the published weights (pt_inception-2015-12-05-6726825d.pth).
        sha256: what the file must be; with any other than the published one, a distance is not FID.
        batch_size: images at a time.
    """

    weights: str = ""
    sha256: str = PUBLISHED
    batch_size: int = 50

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
        device = base.accelerator()
        network = network_class()("inception", ["2048"], feature_extractor_weights_path=str(file))
        network.to(device)

        def features(x: Tensor) -> Tensor:
            return network(base.as_rgb(x).to(device))[0]

        return base.Features(
            "inception",
            sha256,
            lambda x: base.in_batches(features, x, self.batch_size),
            resize="tf1-bilinear-299",
            is_fid=sha256 == PUBLISHED,
        )


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
