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
from fewstep.experiments.extractors.base import (
    LOGITS,
    MAIN,
    SPATIAL,
    in_one_pass,
    read_cached,
    write_once,
)
from fewstep.experiments.metrics.frechet_distance import GaussianStats, names_in_npz, read_npz
from fewstep.experiments.rng import generator
from fewstep.experiments.store.json_files import Json

NO_ROWS = (
    "{} holds mu and sigma alone, which serve Frechet distances; other metrics need a reference "
    "batch of images (arr_0), or a split"
)
NO_MOMENTS = "{} holds neither images (arr_0) nor {}, which a Frechet distance needs"
HELD_OUT = "held_out"  # features of the other split, in a file of statistics
SUFFIXES = {SPATIAL: "_s"}  # of mu and sigma, as ADM's evaluator writes them
# how images are resized for features whose cached files are named without it, as they once were
UNNAMED = ("none", "tf1-bilinear-299")
Array = NDArray[np.float64]


def short_hash(value: Any) -> str:
    """12 hex digits of a JSON value's hash."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def moment_names(layer: str) -> tuple[str, str]:
    """What a file calls mean and covariance of a layer's features."""
    return f"mu{SUFFIXES.get(layer, '')}", f"sigma{SUFFIXES.get(layer, '')}"


def holds_both(file: Path, layer: str = MAIN) -> bool:
    """Whether an npz has images and statistics of that layer."""
    return {"arr_0", *moment_names(layer)} <= names_in_npz(file)


class Reference:
    """The reference split of ``dataset``, or the npz in ``file``, seen through ``features``.

    A file holds uint8 images ``arr_0`` (N, H, W, C), or ``mu`` and ``sigma`` of features, as
    pytorch-fid, EDM and shortcut-models write them, or both, as ADM's reference batches do. Then a
    Frechet distance is to mu and sigma, as in ADM's evaluator, where they are of these features: of
    the extractor that the file names, or where it names none, of as many dimensions. All else is of
    the images.

    ``features`` are of one layer of a network; ``layers`` has a reference for each layer that is
    asked for (``of_layer``), and what is computed of images, is for all of them in one pass.

    ``all_rows``: metrics that compare samples with images take all of these, however many.
    """

    def __init__(
        self,
        features: Features,
        dataset: Dataset,
        cache: Path,
        split: str = "train",
        file: Path | None = None,
        all_rows: bool = False,
        layers: "dict[str, Reference] | None" = None,
    ) -> None:
        self.features, self.dataset, self.cache, self.split = features, dataset, cache, split
        images = dataset.is_image or features.decode is not None
        self.preprocess = "clip-round-uint8" if images else "none"
        self.file, self.all_rows = file, all_rows
        self.layers: dict[str, Reference] = {} if layers is None else layers
        self.layers[features.layer] = self
        self._held_out: dict[int, Array] = {}

    def of_layer(self, layer: str) -> "Reference":
        """The same references in another layer; ``UserError`` where the network gives no others."""
        if layer not in self.layers:
            about = self.dataset, self.cache, self.split, self.file, self.all_rows
            Reference(self.features.of_layer(layer), *about, self.layers)  # adds itself
        return self.layers[layer]

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
        return self.file is not None and holds_both(self.file, self.features.layer)

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
        mu = moment_names(self.features.layer)[0]
        held = read_npz(self.file, (mu, "extractor"))
        if "extractor" in held:
            return str(held["extractor"]) in (self.features.label, self.features.name)
        return held[mu].shape == (self._dimension,)

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
            suffix = SUFFIXES.get(self.features.layer, "")
            stats = GaussianStats.read(self.file, self.features.label, self.preprocess, suffix)
            if stats.n is not None and stats.n < 2:
                raise UserError(f"{self.file}: n must be at least 2, got {stats.n}")
            if (own := stats.dimension) != self._dimension:
                have = f"features of {self.features.name} have {self._dimension}"
                raise UserError(f"{self.file} is of {own} dimensions, {have}")
            return stats
        file, found = self._cache_file(".npz"), dict[Reference, GaussianStats]()

        def write(path: Path) -> None:
            found.update(self._moments_of_images())
            found.pop(self).write(path)

        write_once(file, write)
        for other, stats in found.items():  # one file's lock is free before the next one is taken
            write_once(other._cache_file(".npz"), stats.write)
        return GaussianStats.read(file)

    def _moments_of_images(self) -> "dict[Reference, GaussianStats]":
        """Of each layer that distances are taken in, and that the file has no moments of."""
        assert self.images is not None
        wanted = [r for r in self.layers.values() if r.features.layer != LOGITS and not r.stored]
        rows = in_one_pass([r.features for r in wanted], self.images)
        return {r: r.stats(x) for r, x in zip(wanted, rows, strict=True)}

    def rows(self, n: int) -> Array:
        """(n, D) features of ``n`` references, all if they are fewer; the same each time.

        Of all references, where ``all_rows``.
        """
        if self.images is None:
            raise UserError(NO_ROWS.format(self.file))
        images = self.images
        if self.all_rows:
            n = len(images)
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

    @property
    def other_features(self) -> Array:
        """(M, D) features of the whole split that it is not."""
        return self.features.extract(self._other.x)

    @cached_property
    def unseen(self) -> Array:
        """(M, D) features of the whole held-out split."""
        return self.features.extract(self.dataset.test.x)

    def held_out(self, n: int) -> Array | None:
        """(n, D) features of real examples of the other split; None where it has fewer.

        Of latents against a file of images, those that the file has of held-out images.
        """
        if self.features.decode is None or self.file is None:
            return self._of_other_split(n)
        rows = self._held_out_in_file
        if rows is None or len(rows) < n:
            return None
        return rows[torch.randperm(len(rows), generator=generator(0, "floor"))[:n].numpy()]

    def reconstructed(self, n: int) -> Array | None:
        """(n, D) features of what an autoencoder makes of real images of the other split.

        None where data are no latents, have fewer, or the references are decoded latents, too.
        """
        if self.features.decode is None or self.file is None:
            return None
        return self._of_other_split(n)

    @cached_property
    def _held_out_in_file(self) -> Array | None:
        assert self.file is not None
        held = read_npz(self.file, (HELD_OUT, "extractor"))
        if HELD_OUT not in held or str(held.get("extractor")) != self.features.label:
            return None
        return np.asarray(held[HELD_OUT], dtype=np.float64)

    def _of_other_split(self, n: int) -> Array | None:
        other = self._other.x
        if len(other) < n:
            return None
        if n not in self._held_out:
            index = torch.randperm(len(other), generator=generator(0, "floor"))[:n]
            everywhere = list(self.layers.values())
            found = in_one_pass([r.features for r in everywhere], other[index])
            for reference, x in zip(everywhere, found, strict=True):
                reference._held_out[n] = x
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

    @property
    def _other(self) -> Split:
        return self.dataset.test if self.split == "train" else self.dataset.train

    @cached_property
    def _sha256(self) -> str:
        if self.file is None:
            return self._split.sha256
        return known_sha256(self.file)

    def _cache_file(self, ending: str) -> Path:
        features = self.features
        known = [self._sha256, features.sha256, self.preprocess]
        known += [part for part in (features.layer, features.resize) if part not in ("", *UNNAMED)]
        name = short_hash(known)
        split = self.split if self.file is None else "file"
        return self.cache / "references" / f"{self.dataset.name}-{split}-{name}{ending}"
