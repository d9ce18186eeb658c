"""Data sets and reference files that papers report with, under their public names."""

from collections.abc import Mapping
from typing import NamedTuple


class KnownData(NamedTuple):
    """A data set under a public name.

    Attributes:
        size: pixels a side. channels: 1 for grey, 3 for RGB.
        classes: 0 where it has no class labels.
        train: number of training images; all images where ``test`` is 0.
        test: number of images that its authors hold out; 0 where they hold out none.
        resized: whether its images are made from larger ones: the statistics of the training
            images then depend on crop and filter.
        source: who made it, and where the numbers are printed.
    """

    size: int
    channels: int
    classes: int
    train: int
    test: int
    resized: bool
    source: str


_IMAGENET = "Russakovsky et al. 2015 (arXiv:1409.0575), ILSVRC 2012"
_FFHQ = "Karras et al. 2019 (arXiv:1812.04948)"
KNOWN: dict[str, KnownData] = {
    "mnist": KnownData(28, 1, 10, 60_000, 10_000, False, "LeCun et al. 1998"),
    "fashion_mnist": KnownData(28, 1, 10, 60_000, 10_000, False,
                               "Xiao et al. 2017 (arXiv:1708.07747)"),
    "cifar10": KnownData(32, 3, 10, 50_000, 10_000, False, "Krizhevsky 2009"),
    "imagenet_64": KnownData(64, 3, 1000, 1_281_167, 50_000, True, _IMAGENET),
    "imagenet_256": KnownData(256, 3, 1000, 1_281_167, 50_000, True, _IMAGENET),
    "imagenet_512": KnownData(512, 3, 1000, 1_281_167, 50_000, True, _IMAGENET),
    "celeba_hq_256": KnownData(256, 3, 0, 30_000, 0, True,
                               "Karras et al. 2018 (arXiv:1710.10196)"),
    "ffhq_64": KnownData(64, 3, 0, 70_000, 0, True, _FFHQ),
    "ffhq_256": KnownData(256, 3, 0, 70_000, 0, True, _FFHQ),
}  # fmt: skip

TRAIN = "train"
"""Statistics of all training images, where these come in their own size (CIFAR-10)."""

POOL, SPATIAL = 2048, 2023  # dimensions of Inception's pool_3, and of 7 channels of mixed_6
_STATISTICS: Mapping[str, tuple[int, ...]] = {"mu": (POOL,), "sigma": (POOL, POOL)}
_ADM: Mapping[str, tuple[int, ...]] = {
    **_STATISTICS, "mu_s": (SPATIAL,), "sigma_s": (SPATIAL, SPATIAL)
}  # fmt: skip


class KnownReference(NamedTuple):
    """A reference file that a project offers.

    Attributes:
        file: its name there. data: of which data set (a name in ``KNOWN``).
        arrays: shapes by name. source: the project, and how its images were made.
        same_as: ``TRAIN`` where anybody's statistics of the training images are the same.
    """

    file: str
    data: str
    arrays: Mapping[str, tuple[int, ...]]
    source: str
    same_as: str = ""


def _adm(size: int, file: str) -> KnownReference:
    source = "openai/guided-diffusion, evaluations: mu, sigma of the training set, 10,000 images"
    arrays = {"arr_0": (10_000, size, size, 3), **_ADM}
    return KnownReference(file, f"imagenet_{size}", arrays, source)


def _statistics(file: str, data: str, source: str, same_as: str = "") -> KnownReference:
    return KnownReference(file, data, _STATISTICS, source, same_as)


_EDM = "NVlabs/edm, fid-refs: the training images"
_KVFRANS = "kvfrans/shortcut-models, data: the whole data set, another port of Inception"
REFERENCES: dict[str, KnownReference] = {
    "adm_imagenet_64": _adm(64, "VIRTUAL_imagenet64_labeled.npz"),
    "adm_imagenet_256": _adm(256, "VIRTUAL_imagenet256_labeled.npz"),
    "adm_imagenet_512": _adm(512, "VIRTUAL_imagenet512.npz"),
    "edm_cifar10": _statistics("cifar10-32x32.npz", "cifar10", _EDM, TRAIN),
    "edm_ffhq_64": _statistics("ffhq-64x64.npz", "ffhq_64", _EDM),
    "edm_imagenet_64": _statistics("imagenet-64x64.npz", "imagenet_64", _EDM + " (center-crop)"),
    "edm_imagenet_64_baseline": _statistics(
        "imagenet-64x64-baseline.npz", "imagenet_64", _EDM + " of ADM's model"),
    "kvfrans_celeba_hq_256": _statistics("celeba256_fidstats_ours.npz", "celeba_hq_256", _KVFRANS),
    "kvfrans_imagenet_256": _statistics("imagenet256_fidstats_ours.npz", "imagenet_256", _KVFRANS),
}  # fmt: skip


def canonical(reference: str) -> str:
    """One name for references that are the same: ``edm_cifar10`` is ``train``."""
    known = REFERENCES.get(reference)
    return known.same_as or reference if known else reference
