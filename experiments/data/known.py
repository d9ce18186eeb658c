"""Data sets that papers report on: what ``data.is=NAME`` declares, and how it is checked."""

from dataclasses import replace
from typing import NamedTuple

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data.base import Dataset


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


def check_name(name: str) -> None:
    """Raise ``UserError`` unless ``name`` is "" or one of ``KNOWN``."""
    if name:
        check_choice("data.is", name, KNOWN)


def declared(dataset: Dataset, name: str, image: tuple[int, ...] | None = None) -> Dataset:
    """``dataset``, declared to be ``name``; unchanged for "".

    Args:
        dataset: images (C, H, W), or latents of them.
        image: shape (C, H, W) of the images, where ``dataset`` holds their latents.

    Raises ``UserError``: pixels, classes or number of images are not those of ``KNOWN[name]``.
    Data without labels pass: whoever leaves the classes out trains without conditions.
    """
    if not name:
        return dataset
    check_name(name)
    known = KNOWN[name]
    own = dataset.shape if image is None else image
    problems = []
    if own != (expected := (known.channels, known.size, known.size)):
        problems.append(f"images of {_shown(own)}, expected {_shown(expected)}")
    if dataset.num_classes not in (0, known.classes) or dataset.condition_dim:
        k = dataset.condition_dim
        has = f"condition vectors of length {k}" if k else f"{dataset.num_classes:,} classes"
        expected_classes = f"{known.classes:,} classes" if known.classes else "no classes"
        problems.append(f"{has}, expected {expected_classes} (data.labels=false takes none)")
    problems += _counts(known, len(dataset.train), len(dataset.test))
    if problems:
        raise UserError(f"{dataset.name} is not {name} (data.is): it has {'; '.join(problems)}")
    return replace(dataset, is_=name)


def _counts(known: KnownData, train: int, test: int) -> list[str]:
    """What is wrong with the number of images: [] for nothing."""
    if train == known.train:
        return []
    if not known.test and train + test == known.train:
        return []  # a share is held out here, the authors hold out none
    whole = f"{known.train:,} training images"
    if not known.test:
        whole = f"{known.train:,} in all"
    return [f"{train:,} training and {test:,} held-out images, expected {whole}"]


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
