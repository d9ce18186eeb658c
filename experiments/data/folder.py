"""Folders of images, flat or one sub-folder a class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.errors import UserError
from fewstep.experiments.data.base import DATA, Dataset
from fewstep.experiments.data.content_hash import SourceFile, content_hashes
from fewstep.experiments.data.decode import DecodedImages, EncodedSplit, open_image
from fewstep.experiments.data.folder_layout import AUTO, Labelled, Layout, read_layout
from fewstep.experiments.data.split import shuffled, stratified
from fewstep.files import below, resolved
from fewstep.registry import added


@DATA.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(DecodedImages):
    """Images in ``root``/``folder``: flat, or one sub-folder a class; or in train/ and test/ there.

    They are decoded once and kept in the cache. docs/data.md has the layouts and the resizes.

    Attributes:
        folder: below ``root``, or absolute; it is part of a run's identity, as it is written.
        labels: whether sub-folders are classes. The others are those of ``DecodedImages``.
        splits: [auto] recognises folders with usual names; [TRAIN, TEST] or [TRAIN] names them; []
            takes all sub-folders as classes.
    """

    folder: str = "images"
    splits: tuple[str, ...] = added(AUTO)

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = AUTO[0] not in self.splits and all(Path(name).parts for name in self.splits)
        if self.splits != AUTO and not (plain and len(self.splits) <= 2):
            raise UserError(
                f"data.splits must be [auto], [], [TRAIN] or [TRAIN,TEST] with names of folders, "
                f"got [{','.join(self.splits)}]"
            )

    def load(self) -> Dataset:
        if not (base := below(self.root, self.folder)).is_dir():
            also = f", nor {resolved(self.root) / base.name}" * Path(self.folder).is_absolute()
            raise UserError(f"no folder {base}{also} (data.folder={self.folder!r} in data.root)")
        layout = read_layout(base, self.folder, self.splits, self.labels)
        train, test = self._splits(layout)
        classes = _classes(base, train, test)
        number = {label: i for i, label in enumerate(classes)}

        def source(item: Labelled) -> SourceFile:
            label = None if item.label is None else number[item.label]
            return SourceFile(item.file.path, item.file.stat, label)

        files = {"train": [*map(source, train)], "test": [*map(source, test)]}

        def split(name: str) -> EncodedSplit:
            y = np.array([file.label for file in files[name]], np.int64) if classes else None
            return files[name], lambda file: open_image(file.path), lambda file: file.path, y

        name = Path(os.path.abspath(base)).name
        identity = {"content": content_hashes(self.cache, files)}
        return self.cached(name, identity, len(classes), split, classes, layout.notes)

    def _splits(self, layout: Layout) -> tuple[list[Labelled], list[Labelled]]:
        files = layout.train
        if layout.test is not None:
            return shuffled(files), shuffled(layout.test)
        _, y = np.unique([str(label) for _, label in files], return_inverse=True)
        rows = stratified(y, self.held_out(len(files), layout.where))
        train, test = ([files[i] for i in part.tolist()] for part in rows)
        return train, test


def _classes(base: Path, train: Sequence[Labelled], test: Sequence[Labelled]) -> tuple[str, ...]:
    """Names of the classes, sorted; () for none. ``UserError`` where ``test`` has another."""
    classes = sorted({label for _, label in train if label is not None})
    unseen = sorted({str(label) for _, label in test if label is not None} - set(classes))
    if unseen:
        raise UserError(f"{base}: class {unseen[0]!r} is in the test images alone")
    if classes and any(label is None for _, label in test):
        raise UserError(f"{base}: the train images have classes, the test images have none")
    return tuple(classes)
