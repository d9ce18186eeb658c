"""What samples are compared with: real images in one extractor's features, or a file of statistics.

What takes long is kept in the cache, under names made of what it depends on, so that all runs of a
sweep share it: whoever comes first computes it.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset, Split
from fewstep.experiments.data.content_hash import known_sha256
from fewstep.experiments.extractors import Features
from fewstep.experiments.extractors.base import read_cached, write_once
from fewstep.experiments.metrics.frechet_distance import GaussianStats, names_in_npz, read_npz
from fewstep.experiments.rng import generator
from fewstep.experiments.store.json_files import Json

NO_ROWS = (
    "{} holds mu and sigma alone, which serve Frechet distances; other metrics need a reference "
    "batch of images (arr_0), or a split"
)
Array = NDArray[np.float64]


def short_hash(value: Any) -> str:
    """12 hex digits of a JSON value's hash."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def holds_both(file: Path) -> bool:
    """Whether an npz has images and statistics."""
    return {"arr_0", "mu", "sigma"} <= names_in_npz(file)


class Reference:
    """The reference split of ``dataset``, or the npz in ``file``, seen through ``features``.

    A file holds uint8 images ``arr_0`` (N, H, W, C), or ``mu`` and ``sigma`` of features, as
    pytorch-fid, EDM and shortcut-models write them, or both, as ADM's reference batches do. Then a
    Frechet distance is to mu and sigma, as in ADM's evaluator, where they are of these features: of
    the extractor that the file names, or where it names none, of as many dimensions. All else is of
    the images.
    """

    def __init__(
        self,
        features: Features,
        dataset: Dataset,
        cache: Path,
        split: str = "train",
        file: Path | None = None,
    ) -> None:
        self.features, self.dataset, self.cache, self.split = features, dataset, cache, split
        images = dataset.is_image or features.decode is not None
        self.preprocess = "clip-round-uint8" if images else "none"
        self.file = file
        self._held_out: dict[int, Array] = {}

    @cached_property
    def identity(self) -> Json:
        """What it is, whatever the extractor."""
        return {
            "reference": self.split if self.file is None else "file",
            "reference_sha256": self._sha256,
            "reference_samples": self.moments.n if self.images is None else len(self.images),
        }

    @cached_property
    def holds_both(self) -> bool:
        """Whether it is a file of images and statistics."""
        return self.file is not None and holds_both(self.file)

    @cached_property
    def is_guessed(self) -> bool:
        """Whether mu and sigma are used by their dimension alone: the file names no extractor."""
        assert self.file is not None
        return self.stored and "extractor" not in read_npz(self.file, ("extractor",))

    @cached_property
    def stored(self) -> bool:
        """Whether its moments are the file's mu and sigma, not those of images."""
        if self.file is None or not self.holds_both:
            return self.images is None
        held = read_npz(self.file, ("mu", "extractor"))
        if "extractor" in held:
            return str(held["extractor"]) in (self.features.label, self.features.name)
        return held["mu"].shape == (self._dimension,)

    @cached_property
    def _dimension(self) -> int:
        return int(self.features.extract(self.dataset.test.x[:1]).shape[1])

    @cached_property
    def images(self) -> Tensor | None:
        """(M, ...) raw references; None where a file has only their statistics."""
        if self.file is None:
            return self._split.x
        held = read_npz(self.file, ("arr_0",))
        if "arr_0" not in held:
            return None
        images = held["arr_0"]
        if images.ndim != 4 or images.dtype != np.uint8:
            own = f"{images.dtype} of shape {images.shape}"
            raise UserError(f"{self.file}: arr_0 is {own}, expected uint8 images (N, H, W, C)")
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        held_shape, shape = tuple(x.shape[1:]), self.features.image_shape or self.dataset.shape
        if held_shape != shape:
            expected = f"those of {self.dataset.name} have {shape}"
            raise UserError(f"{self.file} holds images of shape {held_shape}, {expected}")
        if len(x) < 2:
            raise UserError(f"{self.file}: a reference needs at least 2 images, got {len(x)}")
        return x

    @cached_property
    def moments(self) -> GaussianStats:
        """Mean and covariance of the features of all references."""
        if self.stored:
            assert self.file is not None
            stats = GaussianStats.read(self.file, self.features.label, self.preprocess)
            if stats.n is not None and stats.n < 2:
                raise UserError(f"{self.file}: n must be at least 2, got {stats.n}")
            if (own := stats.dimension) != self._dimension:
                have = f"features of {self.features.name} have {self._dimension}"
                raise UserError(f"{self.file} is of {own} dimensions, {have}")
            return stats
        assert self.images is not None
        images, file = self.images, self._cache_file(".npz")
        write_once(file, lambda path: self.stats(self.features.extract(images)).write(path))
        return GaussianStats.read(file)

    def rows(self, n: int) -> Array:
        """(n, D) features of ``n`` references, all if they are fewer; the same each time."""
        if self.images is None:
            raise UserError(NO_ROWS.format(self.file))
        images = self.images
        if len(images) > n:
            images = images[torch.randperm(len(images), generator=generator(0, "references"))[:n]]
        return self.kept(f"rows{n}", lambda: self.features.extract(images))

    @cached_property
    def train(self) -> Array:
        """(M, D) features of the whole training split, whatever the reference is."""
        return self.kept(self.trained("rows"), lambda: self.features.extract(self.dataset.train.x))

    def trained(self, what: str) -> str:
        """The name to keep something of the training split under."""
        return f"train-{self.dataset.train.sha256[:12]}-{what}"

    @cached_property
    def unseen(self) -> Array:
        """(M, D) features of the whole held-out split."""
        return self.features.extract(self.dataset.test.x)

    def held_out(self, n: int) -> Array | None:
        """(n, D) features of real examples of the other split; None where it has fewer."""
        other = (self.dataset.test if self.split == "train" else self.dataset.train).x
        if len(other) < n:
            return None
        if n not in self._held_out:
            index = torch.randperm(len(other), generator=generator(0, "floor"))[:n]
            self._held_out[n] = self.features.extract(other[index])
        return self._held_out[n]

    def kept(self, what: str, make: Callable[[], Array]) -> Array:
        """``make()``, made once for all runs and kept in float32, which networks compute in."""
        file = self._cache_file(f"-{what}.npy")

        def write(file: Path) -> None:
            with file.open("wb") as opened:
                np.save(opened, make().astype(np.float32))

        write_once(file, write)
        return read_cached(file, np.load).astype(np.float64)

    def stats(self, x: Tensor | Array) -> GaussianStats:
        """Of features (n, D)."""
        return GaussianStats.from_features(x, self.features.label, self.preprocess)

    @property
    def _split(self) -> Split:
        return self.dataset.train if self.split == "train" else self.dataset.test

    @cached_property
    def _sha256(self) -> str:
        if self.file is None:
            return self._split.sha256
        return known_sha256(self.file)

    def _cache_file(self, ending: str) -> Path:
        name = short_hash([self._sha256, self.features.sha256, self.preprocess])
        split = self.split if self.file is None else "file"
        return self.cache / "references" / f"{self.dataset.name}-{split}-{name}{ending}"
