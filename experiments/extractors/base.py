"""Feature extractors: what a metric compares samples and references by.

Only the Inception network gives "FID"; a distance in other features is named for them
(``FD-digits-cnn@597``), and the hash of the extractor's weights is part of the metric's identity.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.content_hash import known_sha256
from fewstep.experiments.store.json_files import CorruptFile
from fewstep.experiments.store.source_hash import third_party_hash
from fewstep.files import locked, replacing
from fewstep.registry import Registry

BATCH = 500
MAIN, LOGITS, SPATIAL = "", "logits", "spatial"  # layers of a network
LAYERED = "inception, or decoded with it"
T = TypeVar("T")


@dataclass(frozen=True)
class Features:
    """A ready extractor. ``extract``: raw data (N, ...) -> float64 features (N, D).

    ``resize``: what is done to an image's size before it, as a metric's identity states it.
    ``is_fid``: whether its Frechet distance is what the field calls FID.

    ``source``: hash of a third party's code, which is part of ``sha256``.

    Where the data stand for images: ``decode`` makes uint8 images, of ``image_shape``, of them, and
    ``of`` are the features that are taken of the images.

    ``layer``: which layer of the network they are, ``MAIN`` for the one that distances are taken
    in. ``layers``: raw data and names of layers -> what each gives (N, D), all in one pass.
    """

    name: str
    sha256: str
    extract: Callable[[Tensor], np.ndarray]
    resize: str = "none"
    is_fid: bool = False
    of: "Features | None" = None
    decode: Callable[[Tensor], Tensor] | None = None
    image_shape: tuple[int, ...] | None = None
    source: str | None = None
    layer: str = MAIN
    layers: Callable[[Tensor, Collection[str]], dict[str, np.ndarray]] | None = None

    def of_layer(self, layer: str) -> "Features":
        """Those of another layer of the same network; ``UserError`` where it gives no others."""
        if layer == self.layer:
            return self
        if (layers := self.layers) is None:
            raise UserError(f"extractor {self.name} has no {layer} (choices: {LAYERED})")
        return replace(self, layer=layer, extract=lambda x: layers(x, [layer])[layer])

    @property
    def label(self) -> str:
        """Name and hash, as files of statistics keep it; of images, if it is those it sees."""
        seen = self.of or self
        return f"{seen.name}-{seen.sha256[:12]}"


class Extractor(Protocol):
    """A frozen dataclass of settings that makes ``Features`` for a data set.

    One that has a true ``learns`` fits itself to the training split. One whose settings name files
    has ``content()``, their hash, or None while they are not there: where they are replaced, cells
    are computed again. One that gives other layers than the main one names them, ``layer_names``.
    """

    def check(self, dataset: Dataset) -> None:
        """Raise ``UserError`` where ``dataset`` is nothing for this extractor."""
        ...

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        """Make it ready; what takes long to make is kept in ``cache``."""
        ...


EXTRACTORS: Registry[Extractor] = Registry("extractor", "fewstep.extractors")


def prepared(extractor: Extractor, dataset: Dataset, cache: Path) -> Features:
    """``extractor`` made ready; of a third party's, the hash is also of its code."""
    features = extractor.prepare(dataset, cache)
    if (source := third_party_hash(extractor)) is None:
        return features
    sha256 = hashlib.sha256(f"{features.sha256}{source}".encode()).hexdigest()
    return replace(features, sha256=sha256, source=source)


def in_batches(f: Callable[[Tensor], Tensor], x: Tensor, size: int = BATCH) -> np.ndarray:
    """(N, ...) -> float64 (N, D), ``size`` rows at a time."""
    with torch.no_grad():
        return torch.cat([f(part).cpu() for part in x.split(size)]).double().numpy()


def in_one_pass(wanted: Sequence[Features], x: Tensor) -> list[np.ndarray]:
    """What each of ``wanted``, layers of one network, gives of ``x``, which it sees once."""
    layers = wanted[0].layers
    if layers is None or len(wanted) == 1:
        return [features.extract(x) for features in wanted]
    found = layers(x, [features.layer for features in wanted])
    return [found[features.layer] for features in wanted]


def write_once(file: Path, write: Callable[[Path], None]) -> None:
    """Make ``file`` by ``write(another name)`` unless it is there; other processes wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f"{file.stem}.lock")):
        if not file.exists():
            with replacing(file) as other:
                write(other)


def read_cached(file: Path, read: Callable[[Path], T]) -> T:
    """``read(file)``, of what ``write_once`` has written; ``CorruptFile`` where it is damaged."""
    try:
        return read(file)
    except (SafetensorError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(
            f"{file} is damaged ({reason}): remove it, and it is made again"
        ) from None


def content_sha256(files: Iterable[Path], *more: str | None) -> str | None:
    """Of files, and of hashes; None where there are no files, or not all are there."""
    files = sorted(files)
    if not files or not all(file.is_file() for file in files):
        return None
    known = [[file.name, known_sha256(file)] for file in files]
    return hashlib.sha256(json.dumps([known, *more]).encode()).hexdigest()


def check_images(extractor: str, dataset: Dataset, rgb: bool = False) -> None:
    """Raise unless ``dataset`` holds images, with 1 or 3 channels where ``rgb`` is needed."""
    if not dataset.is_image:
        raise unfit(extractor, "images", dataset, f"shape {dataset.shape} (choices here: raw, pca)")
    if rgb and dataset.shape[0] not in (1, 3):
        raise unfit(extractor, "1 or 3 channels", dataset, dataset.shape[0])


def unfit(extractor: str, needs: str, dataset: Dataset, has: object) -> UserError:
    """Why an extractor cannot serve ``dataset``."""
    return UserError(f"extractor {extractor} needs {needs}; {dataset.name} has {has}")


def accelerator() -> torch.device:
    """The device of a large pretrained network."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_rgb(x: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W)."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def check_weights(extractor: str, setting: str, file: Path, expected: str) -> str:
    """The sha256 of ``file``; ``UserError`` unless it is there and ``expected`` ("" for any)."""
    if not file.is_file():
        raise UserError(f"extractor {extractor}: no file {file} ({setting}); nothing is downloaded")
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if expected not in ("", sha256):
        raise UserError(f"extractor {extractor}: {file} has sha256 {sha256}, expected {expected}")
    return sha256
