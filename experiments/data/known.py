"""``data.is=NAME``: a data set is declared to be a public one, and checked against it."""

from dataclasses import replace

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data.base import Dataset
from fewstep.public_data import KNOWN as KNOWN
from fewstep.public_data import KnownData as KnownData


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
