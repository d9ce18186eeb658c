"""Data sets of Hugging Face's ``datasets``, from a local folder, the local cache, or their hub."""

import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError, check_choice, counted
from fewstep.experiments.data.base import DATA, Dataset, hash_array
from fewstep.experiments.data.content_hash import SourceFile, content_hashes
from fewstep.experiments.data.decode import DecodedImages, EncodedSplit, open_image
from fewstep.experiments.data.folder_layout import AUTO, read_layout
from fewstep.experiments.data.folder_scan import IMAGES
from fewstep.experiments.data.huggingface_columns import (
    Labels,
    aligned,
    check_class_orders,
    check_columns,
    column,
    has_labels,
    linked_images,
    read_labels,
    unseen,
)
from fewstep.experiments.data.memmap_cache import cache_folder
from fewstep.experiments.data.split import shuffled, stratified
from fewstep.files import below, resolved
from fewstep.registry import bookkeeping

# what datasets reads, beside image files: tables, lists of images, archives
TABLES = (".parquet", ".arrow", ".csv", ".jsonl", ".zip", ".tar", ".gz", ".tgz",
          ".bz2", ".xz", ".zst", ".7z", ".rar")  # fmt: skip
TESTS = ("test", "validation", "valid", "val")

Table = tuple[str, Any]
"""A split's name, and what ``datasets`` has made of it."""


@DATA.register("huggingface")
@dataclass(frozen=True)
class HuggingFace(DecodedImages):
    """A data set of Hugging Face: a folder, or a name on their hub; needs fewstep[huggingface].

    A folder is one made by ``save_to_disk``, or of parquet, arrow or image files. A name is looked
    for in the local cache, and fetched only with ``download``. Images are decoded once and kept.

    Attributes:
        dataset: a folder below ``root`` or anywhere, or a name as ylecun/mnist.
        subset, revision: of a name on the hub. train, test: names of splits; by default the test
            split is test or validation, and where there is none ``test_share`` is held out.
        image, label: names of columns; by default the only one of that kind. The other settings
            are those of ``DecodedImages``.
    """

    dataset: str = ""
    subset: str = ""
    revision: str = ""
    train: str = "train"
    test: str = ""
    image: str = ""
    label: str = ""
    download: bool = bookkeeping(False)

    def load(self) -> Dataset:
        if not self.dataset:
            raise UserError("data.dataset names no data set: a folder, or a name as ylecun/mnist")
        splits = self._splits()
        local = None if self.subset else self._local()
        if local is not None and is_image_folder(local):
            check_image_folder(local, self.labels, [len(split) for split in splits.values()])
        train = named(splits, self.train, "data.train")
        image = column(train, self.image, "image")
        label = column(train, self.label, "label") if self.labels else None
        if label is not None and local is not None and not is_saved(local):
            check_class_orders(tables_in(local), label, self.dataset)
        test_name, notes = self._held_out_split(splits, label)
        tables = {"train": (self.train, train), "test": (self.train, train)}
        if test_name:
            tables["test"] = (test_name, named(splits, test_name, "data.test"))
        for name, table in tables.values():
            check_columns(table, image, label, f"{self.dataset}: split {name}")
        labels = self._labels(tables, label)
        y = {part: of.y for part, of in labels.items()}
        if test_name:
            rows = {part: shuffled(range(len(table))) for part, (_, table) in tables.items()}
        else:
            by_class = y["train"] if y else np.zeros(len(train), np.int64)
            halves = stratified(by_class, self.held_out(len(train), self.dataset))
            rows = {part: i.tolist() for part, i in zip(tables, halves, strict=True)}

        def split(part: str) -> EncodedSplit:
            name, table = tables[part]
            return (
                rows[part],
                lambda i: open_image(encoded(table[i][image])),
                lambda i: f"{self.dataset}: {image} of row {i} of {name}",
                y[part][rows[part]] if y else None,
            )

        identity = {
            "fingerprints": [table._fingerprint for _, table in tables.values()],
            "columns": [image, label],
            "labels": {part: sha256(array) for part, array in y.items()},
            "test_share": None if test_name else self.test_share,
            **content_hashes(self.cache, {"files": self._files(tables, image)}),
        }
        classes, names = 0, tuple[str, ...]()
        if labels:
            classes, names = labels["train"].classes, labels["train"].names or ()
            notes += unseen(labels["train"])
        return self.cached(Path(self.dataset).name, identity, classes, split, names, notes)

    def _held_out_split(
        self, splits: dict[str, Any], label: str | None
    ) -> tuple[str, tuple[str, ...]]:
        """The name of the test split, "" for a share of the training split; and notes."""
        names = [name for name in TESTS if name in splits]
        chosen, notes, used = self.test, tuple[str, ...](), {self.train}
        if not chosen and names and names[0] != self.train:
            names = [name for name in names if name != self.train]
            labelled = [n for n in names if label is None or has_labels(splits[n], label)]
            if not labelled:
                raise UserError(
                    f"{self.dataset}: {' and '.join(names)} without labels in {label!r}: hold out "
                    f"a share of the others with data.test={self.train}, or set data.labels=false"
                )
            chosen = labelled[0]
            without = names[: names.index(chosen)]
            notes = tuple(
                f"skipped split {n} without labels, {chosen} is held out" for n in without
            )
            used.update(without)
        if rest := [name for name in splits if name not in {*used, chosen}]:
            more = ", ..." if len(rest) > 1 else ""
            notes += (f"skipped {counted(len(rest), 'other split')} ({rest[0]}{more})",)
        return "" if chosen == self.train else chosen, notes

    def _labels(self, tables: dict[str, Table], label: str | None) -> dict[str, Labels]:
        """The labels of "train" and "test" in the order of the former's classes; {} for none."""
        if label is None:
            return {}
        where = {part: f"{self.dataset}: split {name}" for part, (name, _) in tables.items()}
        train = read_labels(tables["train"][1], label, where["train"])
        if tables["test"] == tables["train"]:
            return {"train": train, "test": train}
        test = read_labels(tables["test"][1], label, where["test"])
        return {"train": train, "test": train._replace(y=aligned(train, test, where["test"]))}

    def _files(self, tables: dict[str, Table], image: str) -> list[SourceFile]:
        """All files that hold the rows: a fingerprint is kept when they are replaced."""
        paths: dict[str, None] = {}
        for name, table in tables.values():
            linked = linked_images(table, image, f"{self.dataset}: split {name}")
            paths |= dict.fromkeys([f["filename"] for f in table.cache_files] + linked)
        return [SourceFile(path, os.stat(path)) for path in paths]

    def _splits(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "data=huggingface needs the package datasets: pip install 'fewstep[huggingface]'"
            ) from None
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        local = self._local()
        if local is None and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", self.dataset):
            raise UserError(
                f"no data set at {resolved(self.root) / self.dataset} or {resolved(self.dataset)}, "
                f"and no name on the hub is like that"
            )
        try:
            with offline(local is not None or not self.download):
                splits = self._read(datasets, local)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            hint = "" if local or self.download else "; data.download=true would fetch it"
            where = local or f"{self.dataset} (of the hub, in the local cache)"
            raise UserError(f"{where} cannot be loaded ({reason}){hint}") from None
        return dict(splits) if isinstance(splits, dict) else {self.train: splits}

    def _local(self) -> Path | None:
        """The folder that ``dataset`` names; None for a name on the hub."""
        places = below(self.root, self.dataset), resolved(self.dataset)
        return next((path for path in places if path.exists()), None)

    def _read(self, datasets: Any, local: Path | None) -> Any:
        subset = self.subset or None
        if local is None:
            return datasets.load_dataset(self.dataset, subset, revision=self.revision or None)
        if is_saved(local):
            return datasets.load_from_disk(str(local))
        # rewritten as arrow, once for each content: ``datasets`` goes by names and times alone
        paths = sorted(str(path) for path in local.rglob("*") if path.is_file())
        files = [SourceFile(path, os.stat(path)) for path in paths]
        version = content_hashes(self.cache, {"source": files})["source"][:16]
        cache = cache_folder(self.cache) / "huggingface" / version
        return datasets.load_dataset(str(local.resolve()), subset, cache_dir=str(cache))


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` made it, which keeps the classes of each split."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def is_image_folder(folder: Path) -> bool:
    """Whether it holds image files, and nothing else that ``datasets`` would read."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    return bool(suffixes & {*IMAGES}) and not suffixes & {*TABLES}


def check_image_folder(folder: Path, labels: bool, read: Sequence[int]) -> None:
    """Raise ``UserError`` unless ``datasets`` has read the splits that are there.

    It drops what it does not recognise, and merges splits of other names, in silence.
    """
    use = "use data=image_folder"
    try:
        layout = read_layout(folder, folder.name, AUTO, labels)
    except UserError as error:
        raise UserError(f"data=huggingface cannot read such a folder, {use}: {error}") from None
    there = [len(split) for split in (layout.train, layout.test) if split is not None]
    if sorted(there) != sorted(read):
        raise UserError(
            f"{folder} holds {_counts(there)}, of which datasets has read {_counts(read)}: {use}"
        )


def _counts(splits: Sequence[int]) -> str:
    return " and ".join(f"{count:,}" for count in splits) + " images"


def tables_in(folder: Path) -> list[Path]:
    """The files below ``folder`` that name their own classes."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".arrow"))


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Keep Hugging Face's libraries from the network; their own variables are read at import."""
    import datasets
    import huggingface_hub

    modules: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = wanted or module.HF_HUB_OFFLINE
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def named(splits: dict[str, Any], name: str, setting: str) -> Any:
    """A split, with its images encoded, for they are decoded here."""
    check_choice(setting, name, splits)
    import datasets

    split = splits[name]
    for key, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(key, datasets.Image(decode=False))
    return split


def sha256(y: NDArray[np.int64]) -> str:
    """Hash of the labels: the same table may come to have other classes."""
    digest = hashlib.sha256()
    hash_array(digest, y)
    return digest.hexdigest()


def encoded(value: Any) -> io.BytesIO | str:
    """What PIL can open, of an image that ``datasets`` has left encoded."""
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else str(value["path"])
