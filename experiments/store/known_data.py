"""Data sets that papers report on, under their public names (no torch)."""

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
