"""Folders of images, flat or one sub-folder a class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from fewstep.errors import UserError, check_range
from fewstep.experiments.data.base import DATA, Dataset
from fewstep.experiments.data.holdout import shuffled, stratified
from fewstep.experiments.data.images import Decoder, decoded
from fewstep.experiments.data.store import Part, kept
from fewstep.experiments.settings import bookkeeping

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
BESIDE = ("", ".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".html", ".pdf", ".db")
TESTS = ("test", "val", "valid", "validation")


@DATA.register("image_folder")
@dataclass(frozen=True)
class ImageFolder:
    """Images in ``root``/``folder``: flat, or one sub-folder a class; or in train/ and test/ there.

    They are decoded once and kept in the cache. docs/data.md has the layouts and the resizes.

    Attributes:
        folder: below ``root``, or absolute; it is part of a run's identity, as it is written.
        size, grey, resize: see ``images.Decoder``. labels: whether sub-folders are classes.
        test_share: how much is held out, class by class, where there is no test/ (or val/).
        cache: where decoded images are kept; default FEWSTEP_CACHE, else ~/.cache/fewstep.
    """

    suggested_backbone: ClassVar[str] = "unet_32"

    root: str = "data"
    folder: str = "images"
    size: int = 32
    grey: bool = False
    resize: str = "adm"
    labels: bool = True
    test_share: float = 0.1
    cache: str = bookkeeping("")

    def __post_init__(self) -> None:
        _ = self._decoder
        check_range("data.test_share", self.test_share, 0, 0.9, open_low=True)

    @property
    def _decoder(self) -> Decoder:
        return Decoder(self.size, self.grey, self.resize)

    def load(self) -> Dataset:
        base = Path(self.root).expanduser() / self.folder
        if not base.is_dir():
            raise UserError(f"no folder {base} (data.folder={self.folder!r} in data.root)")
        train, test = self._splits(base)
        classes = sorted({label for _, label in train if label is not None})
        unseen = sorted({str(label) for _, label in test if label is not None} - set(classes))
        if unseen:
            raise UserError(f"{base}: class {unseen[0]!r} is in the test images alone")
        if not classes and any(label is not None for _, label in test):
            raise UserError(f"{base}: the test images have classes, the train images have none")
        if classes and any(label is None for _, label in test):
            raise UserError(f"{base}: the train images have classes, the test images have none")
        number = {label: i for i, label in enumerate(classes)}

        def part(files: Sequence[Labelled]) -> Part:
            def opened(item: Labelled) -> Image.Image:
                return Image.open(item[0])

            blocks = decoded(files, opened, lambda item: str(item[0]), self._decoder)
            y = np.array([number[label] for _, label in files if label is not None], np.int64)
            return Part(len(files), self._decoder.shape, "|u1", blocks, y if classes else None)

        identity = {
            "format": 1,
            "files": {"train": listing(base, train), "test": listing(base, test)},
            "decoder": [self.size, self.grey, self.resize],
        }
        name = base.resolve().name
        splits = kept(
            self.cache, name, identity, lambda: {"train": part(train), "test": part(test)}
        )
        return Dataset(name, *splits, len(classes))

    def _splits(self, base: Path) -> tuple[list[Labelled], list[Labelled]]:
        """The files of both splits, in their order."""
        tests = [base / name for name in TESTS if (base / name).is_dir()]
        if (base / "train").is_dir() and len(tests) > 1:
            raise UserError(f"{base} has {' and '.join(t.name for t in tests)}: leave one of them")
        if (base / "train").is_dir() and tests:
            train, test = (find(place, self.labels) for place in (base / "train", tests[0]))
            return shuffled(train), shuffled(test)
        inside = base / "train" if (base / "train").is_dir() else base
        found = find(inside, self.labels)
        numbers = {label: i for i, label in enumerate(sorted({str(label) for _, label in found}))}
        count = round(self.test_share * len(found))
        if not 0 < count < len(found):
            raise UserError(
                f"{inside} has {len(found)} images, of which none would be left for training or "
                f"testing with data.test_share={self.test_share:g}"
            )
        y = np.array([numbers[str(label)] for _, label in found])
        held_in, held_out = stratified(y, count)
        return [found[i] for i in held_in.tolist()], [found[i] for i in held_out.tolist()]


Labelled = tuple[Path, str | None]
"""A file and its class."""


def find(place: Path, labels: bool) -> list[Labelled]:
    """The images in ``place``, sorted by class and path: its own, or those in its sub-folders.

    Raises:
        UserError: none; images and sub-folders side by side; files that are something else.
    """
    folders = sorted(e for e in place.iterdir() if e.is_dir() and not e.name.startswith("."))
    flat = files_in(place)
    if not folders or not labels:
        found: list[Labelled] = [(file, None) for file in flat]
        found += [(file, None) for folder in folders for file in below(folder)]
    elif flat:
        raise UserError(
            f"{place} holds images ({flat[0].name}, ...) and sub-folders ({folders[0].name}, ...): "
            f"sort the images into classes, or set data.labels=false"
        )
    else:
        found = [(file, folder.name) for folder in folders for file in below(folder)]
        empty = sorted({f.name for f in folders} - {str(label) for _, label in found})
        if empty and found:
            raise UserError(f"{place / empty[0]} holds no images (choices: {', '.join(IMAGES)})")
    if not found:
        raise UserError(f"{place} holds no images (choices: {', '.join(IMAGES)})")
    return found


def below(folder: Path) -> list[Path]:
    """All images below ``folder``, sorted."""
    places = sorted(Path(place) for place, _, _ in os.walk(folder))
    return [file for place in places for file in files_in(place)]


def files_in(place: Path) -> list[Path]:
    """The images in ``place`` itself, sorted; hidden files and texts are passed over."""
    found = []
    for name in sorted(e.name for e in os.scandir(place) if e.is_file()):
        suffix = Path(name).suffix.lower()
        if suffix in IMAGES and not name.startswith("."):
            found.append(place / name)
        elif not name.startswith(".") and suffix not in BESIDE:
            raise UserError(f"{place / name} is no image (choices: {', '.join(IMAGES)})")
    return found


def listing(base: Path, files: Sequence[Labelled]) -> str:
    """A hash of which files these are, in order: path, class, size, time of the last change."""
    digest = hashlib.sha256()
    for file, label in files:
        found = file.stat()
        told = [str(file.relative_to(base)), label, found.st_size, found.st_mtime_ns]
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()
