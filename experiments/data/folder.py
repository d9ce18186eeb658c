"""Folders of images, flat or one sub-folder a class."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset
from fewstep.experiments.data.decode import DecodedImages, EncodedSplit
from fewstep.experiments.data.split import shuffled, stratified

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
BESIDE = ("", ".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".html", ".pdf", ".db")
TESTS = ("test", "val", "valid", "validation")

Labelled = tuple[Path, str | None]
"""A file and its class."""


@DATA.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(DecodedImages):
    """Images in ``root``/``folder``: flat, or one sub-folder a class; or in train/ and test/ there.

    They are decoded once and kept in the cache. docs/data.md has the layouts and the resizes.

    Attributes:
        folder: below ``root``, or absolute; it is part of a run's identity, as it is written.
        labels: whether sub-folders are classes. The others are those of ``DecodedImages``.
    """

    folder: str = "images"

    def load(self) -> Dataset:
        base = Path(self.root).expanduser() / self.folder
        if not base.is_dir():
            raise UserError(f"no folder {base} (data.folder={self.folder!r} in data.root)")
        train, test = self._splits(base)
        classes = sorted({label for _, label in train if label is not None})
        unseen = sorted({str(label) for _, label in test if label is not None} - set(classes))
        if unseen:
            raise UserError(f"{base}: class {unseen[0]!r} is in the test images alone")
        if classes and any(label is None for _, label in test):
            raise UserError(f"{base}: the train images have classes, the test images have none")
        number = {label: i for i, label in enumerate(classes)}

        files = {"train": train, "test": test}

        def split(name: str) -> EncodedSplit:
            y = np.array([number[label] for _, label in files[name] if label is not None], np.int64)
            opened, called = (lambda item: Image.open(item[0])), (lambda item: str(item[0]))
            return files[name], opened, called, y if classes else None

        identity = {"files": {name: listing(base, items) for name, items in files.items()}}
        return self.cached(base.resolve().name, identity, len(classes), split)

    def _splits(self, base: Path) -> tuple[list[Labelled], list[Labelled]]:
        tests = [base / name for name in TESTS if (base / name).is_dir()]
        if (base / "train").is_dir() and len(tests) > 1:
            raise UserError(f"{base} has {' and '.join(t.name for t in tests)}: leave one of them")
        if (base / "train").is_dir() and tests:
            train, test = (find(part, self.labels) for part in (base / "train", tests[0]))
            return shuffled(train), shuffled(test)
        inside = base / "train" if (base / "train").is_dir() else base
        files = find(inside, self.labels)
        _, y = np.unique([str(label) for _, label in files], return_inverse=True)
        rows = stratified(y, self.held_out(len(files), inside))
        train, test = ([files[i] for i in part.tolist()] for part in rows)
        return train, test


def find(directory: Path, labels: bool) -> list[Labelled]:
    """The images in ``directory``, sorted by class and path; ``UserError`` for a mixture."""
    folders = sorted(e for e in directory.iterdir() if e.is_dir() and not e.name.startswith("."))
    flat = files_in(directory)
    empty: list[Path] = []
    if not folders or not labels:
        files: list[Labelled] = [(file, None) for file in flat]
        files += [(file, None) for folder in folders for file in below(folder)]
    elif flat:
        raise UserError(
            f"{directory} holds images ({flat[0].name}, ...) and sub-folders "
            f"({folders[0].name}, ...): sort the images into classes, or set data.labels=false"
        )
    else:
        files = [(file, folder.name) for folder in folders for file in below(folder)]
        empty = [f for f in folders if f.name not in {label for _, label in files}]
    if not files:
        empty = [directory]
    if empty:
        raise UserError(f"{empty[0]} holds no images (choices: {', '.join(IMAGES)})")
    return files


def below(folder: Path) -> list[Path]:
    """All images below ``folder``, sorted."""
    directories = sorted(Path(path) for path, _, _ in os.walk(folder))
    return [file for path in directories for file in files_in(path)]


def files_in(directory: Path) -> list[Path]:
    """The images in ``directory`` itself, sorted; hidden files and texts are passed over."""
    files = []
    for name in sorted(e.name for e in os.scandir(directory) if e.is_file()):
        suffix = Path(name).suffix.lower()
        if suffix in IMAGES and not name.startswith("."):
            files.append(directory / name)
        elif not name.startswith(".") and suffix not in BESIDE:
            raise UserError(f"{directory / name} is not an image (choices: {', '.join(IMAGES)})")
    return files


def listing(base: Path, files: Sequence[Labelled]) -> str:
    """A hash of which files these are, in order: path, class, size, time of the last change."""
    digest = hashlib.sha256()
    for file, label in files:
        stat = file.stat()
        entry = [str(file.relative_to(base)), label, stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
