"""Data sets of Hugging Face's ``datasets``, from a local folder, the local cache, or their hub."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.errors import UserError, check_range, unknown
from fewstep.experiments.data.base import DATA, Dataset
from fewstep.experiments.data.holdout import shuffled, stratified
from fewstep.experiments.data.images import Decoder, decoded
from fewstep.experiments.data.store import Part, cache_folder, kept
from fewstep.experiments.settings import bookkeeping

TESTS = ("test", "validation", "valid", "val")
LABELS = ("label", "labels", "class")


@DATA.register("huggingface")
@dataclass(frozen=True)
class HuggingFace:
    """A data set of Hugging Face: a folder, or a name on their hub; needs fewstep[huggingface].

    A folder is one made by ``save_to_disk``, or of parquet, arrow or image files. A name is looked
    for in the local cache, and fetched only with ``download``. Images are decoded once and kept.

    Attributes:
        dataset: a folder below ``root`` or anywhere, or a name as ylecun/mnist.
        subset, revision: of a name on the hub. train, test: names of splits; by default the test
            split is test or validation, and where there is none ``test_share`` is held out.
        image, label: names of columns; by default the only one of that kind. labels: whether to
            take any. size, grey, resize: see ``images.Decoder``.
    """

    suggested_backbone: ClassVar[str] = "unet_32"

    root: str = "data"
    dataset: str = ""
    subset: str = ""
    revision: str = ""
    train: str = "train"
    test: str = ""
    image: str = ""
    label: str = ""
    labels: bool = True
    size: int = 32
    grey: bool = False
    resize: str = "adm"
    test_share: float = 0.1
    download: bool = bookkeeping(False)
    cache: str = bookkeeping("")

    def __post_init__(self) -> None:
        _ = self._decoder
        check_range("data.test_share", self.test_share, 0, 0.9, open_low=True)

    @property
    def _decoder(self) -> Decoder:
        return Decoder(self.size, self.grey, self.resize)

    def load(self) -> Dataset:
        if not self.dataset:
            raise UserError("data.dataset names no data set: a folder, or a name as ylecun/mnist")
        splits = self._splits()
        train = named(splits, self.train, "data.train")
        image = column(train, self.image, "image", is_image)
        label = column(train, self.label, "label", is_label) if self.labels else None
        test_name = self.test or next((name for name in TESTS if name in splits), "")
        if test_name and test_name != self.train:
            test = named(splits, test_name, "data.test")
            rows = [shuffled(range(len(split))) for split in (train, test)]
        else:
            test, rows = train, [i.tolist() for i in stratified(*self._held_out(train, label))]
        names = ("train", test_name or "train")
        both = train, test
        ys = [
            None if label is None else labels_of(split, label)[chosen]
            for split, chosen in zip(both, rows, strict=True)
        ]
        identity = {
            "format": 1,
            "fingerprints": [train._fingerprint, test._fingerprint],
            "columns": [image, label],
            "test_share": None if test is not train else self.test_share,
            "decoder": [self.size, self.grey, self.resize],
        }

        def part(split: Any, name: str, rows: Sequence[int], y: NDArray[np.int64] | None) -> Part:
            blocks = decoded(
                rows,
                lambda i: Image.open(encoded(split[i][image])),
                lambda i: f"{self.dataset}: {image} of row {i} of {name}",
                self._decoder,
            )
            return Part(len(rows), self._decoder.shape, "|u1", blocks, y)

        name = Path(self.dataset).name

        def make() -> dict[str, Part]:
            return dict(zip(("train", "test"), map(part, both, names, rows, ys), strict=True))

        kept_splits = kept(self.cache, name, identity, make)
        return Dataset(name, *kept_splits, 0 if label is None else classes_in(train, label))

    def _held_out(self, train: Any, label: str | None) -> tuple[NDArray[np.int64], int]:
        count = round(self.test_share * len(train))
        if not 0 < count < len(train):
            raise UserError(f"{self.dataset}: {len(train)} images cannot be split for testing")
        return np.zeros(len(train), np.int64) if label is None else labels_of(train, label), count

    def _splits(self) -> dict[str, Any]:
        """The splits by name, with images still encoded."""
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
                found = self._read(datasets, local)
        except Exception as error:
            reason = " ".join(str(error).split())
            hint = "" if local or self.download else "; data.download=true would fetch it"
            where = local or f"{self.dataset} (of the hub, in the local cache)"
            raise UserError(
                f"{where} cannot be loaded ({type(error).__name__}: {reason}){hint}"
            ) from None
        return dict(found) if isinstance(found, dict) else {self.train: found}

    def _read(self, datasets: Any, local: Path | None) -> Any:
        if local is None:
            revision = self.revision or None
            return datasets.load_dataset(self.dataset, self.subset or None, revision=revision)
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            return datasets.load_from_disk(str(local))
        cache = cache_folder(self.cache) / "huggingface"  # where it is rewritten as arrow
        return datasets.load_dataset(
            str(local.resolve()), self.subset or None, cache_dir=str(cache)
        )


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Keep Hugging Face's libraries from the network; their own variables are read at import."""
    import datasets
    import huggingface_hub

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = wanted or place.HF_HUB_OFFLINE
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def named(splits: dict[str, Any], name: str, setting: str) -> Any:
    """A split, with its images encoded, for they are decoded here."""
    if name not in splits:
        raise unknown(setting, name, splits)
    import datasets

    split = splits[name]
    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    return split


def column(split: Any, name: str, kind: str, fits: Any) -> str:
    """The column called ``name``, or the only one that ``fits``."""
    fitting = [c for c, feature in split.features.items() if fits(c, feature)]
    if name in fitting or (not name and len(fitting) == 1):
        return name or fitting[0]
    if name:
        raise unknown(f"data.{kind}", name, fitting)
    if not fitting:
        hint = " (data.labels=false takes none)" if kind == "label" else ""
        raise UserError(f"no column of {kind}s among {', '.join(split.features)}{hint}")
    raise UserError(f"several columns of {kind}s: choose with data.{kind}= ({', '.join(fitting)})")


def is_image(name: str, feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def is_label(name: str, feature: Any) -> bool:
    """Classes, or whole numbers under a usual name."""
    whole = str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
    return type(feature).__name__ == "ClassLabel" or (whole and name.lower() in LABELS)


def labels_of(split: Any, label: str) -> NDArray[np.int64]:
    return np.asarray(split.with_format("numpy", columns=[label])[:][label], np.int64)


def classes_in(split: Any, label: str) -> int:
    names = getattr(split.features[label], "names", None)
    return len(names) if names else int(labels_of(split, label).max()) + 1


def encoded(value: Any) -> io.BytesIO | str:
    """What PIL can open, of an image that ``datasets`` has left encoded."""
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else str(value["path"])
