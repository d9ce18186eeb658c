"""Data sets of Hugging Face's ``datasets``, from a local folder, the local cache, or their hub."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data.base import DATA, Dataset
from fewstep.experiments.data.decode import DecodedImages, EncodedSplit
from fewstep.experiments.data.memmap_cache import cache_folder
from fewstep.experiments.data.split import shuffled, stratified
from fewstep.registry import bookkeeping

TESTS = ("test", "validation", "valid", "val")
LABELS = ("label", "labels", "class")


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
        train = named(splits, self.train, "data.train")
        image = column(train, self.image, "image")
        label = column(train, self.label, "label") if self.labels else None
        test_name = self.test or next((name for name in TESTS if name in splits), "")
        if test_name and test_name != self.train:
            test = named(splits, test_name, "data.test")
            rows = [shuffled(range(len(split))) for split in (train, test)]
        else:
            y = np.zeros(len(train), np.int64) if label is None else labels_of(train, label)
            count = self.held_out(len(train), self.dataset)
            test, rows = train, [i.tolist() for i in stratified(y, count)]
        identity = {
            "fingerprints": [train._fingerprint, test._fingerprint],
            "columns": [image, label],
            "test_share": None if test is not train else self.test_share,
        }

        def split(name: str) -> EncodedSplit:
            source, chosen = (train, rows[0]) if name == "train" else (test, rows[1])
            shown = (test_name or "train") if name == "test" else "train"
            return (
                chosen,
                lambda i: Image.open(encoded(source[i][image])),
                lambda i: f"{self.dataset}: {image} of row {i} of {shown}",
                None if label is None else labels_of(source, label)[chosen],
            )

        classes = 0 if label is None else classes_in(train, label)
        return self.cached(Path(self.dataset).name, identity, classes, split)

    def _splits(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "data=huggingface needs the package datasets: pip install 'fewstep[huggingface]'"
            ) from None
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        below, plain = Path(self.root).expanduser() / self.dataset, Path(self.dataset).expanduser()
        local = next((path for path in (below, plain) if path.exists()), None)
        if local is None and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", self.dataset):
            raise UserError(
                f"no data set at {below} or {plain}, and no name on the hub is like that"
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

    def _read(self, datasets: Any, local: Path | None) -> Any:
        subset = self.subset or None
        if local is None:
            return datasets.load_dataset(self.dataset, subset, revision=self.revision or None)
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            return datasets.load_from_disk(str(local))
        cache = cache_folder(self.cache) / "huggingface"  # where it is rewritten as arrow
        return datasets.load_dataset(str(local.resolve()), subset, cache_dir=str(cache))


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
    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    return split


def column(split: Any, name: str, kind: str) -> str:
    """The column of this ``kind``, "image" or "label", called ``name``; or the only one.

    Labels are classes, or whole numbers under a usual name.
    """

    def fits(column: str, feature: Any) -> bool:
        if kind == "image":
            return type(feature).__name__ == "Image"
        whole = str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
        return type(feature).__name__ == "ClassLabel" or (whole and column.lower() in LABELS)

    fitting = [c for c, feature in split.features.items() if fits(c, feature)]
    if name:
        check_choice(f"data.{kind}", name, fitting)
    if not fitting:
        hint = " (data.labels=false takes none)" if kind == "label" else ""
        raise UserError(f"no column of {kind}s among {', '.join(split.features)}{hint}")
    if not name and len(fitting) > 1:
        choices = ", ".join(fitting)
        raise UserError(f"several columns of {kind}s: choose with data.{kind}= ({choices})")
    return name or fitting[0]


def labels_of(split: Any, label: str) -> NDArray[np.int64]:
    """(N,) the column ``label`` of a split."""
    return np.asarray(split.with_format("numpy", columns=[label])[:][label], np.int64)


def classes_in(split: Any, label: str) -> int:
    """The number of classes: of the declared names, else one more than the largest."""
    names = getattr(split.features[label], "names", None)
    return len(names) if names else int(labels_of(split, label).max()) + 1


def encoded(value: Any) -> io.BytesIO | str:
    """What PIL can open, of an image that ``datasets`` has left encoded."""
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else str(value["path"])
