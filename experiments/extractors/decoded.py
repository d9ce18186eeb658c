"""Latents judged by the images they stand for: an autoencoder's decoder, then another extractor."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.autoencoders import Autoencoder, AutoencoderEntry, entry_of
from fewstep.experiments.data import ROUNDINGS, Dataset, Split
from fewstep.experiments.extractors.base import (
    EXTRACTORS,
    Extractor,
    Features,
    accelerator,
    content_sha256,
    prepared,
    unfit,
)
from fewstep.experiments.store.source_hash import third_party_hash
from fewstep.registry import build_named


@EXTRACTORS.register("decoded")
@dataclass(frozen=True)
class Decoded:
    """The features of ``extractor`` on images that ``autoencoder`` decodes latents to.

    As in Rombach et al. 2022 and Peebles & Xie 2023. A reference file's images stay as they are.

    Attributes:
        autoencoder: that of the latents: a folder of diffusers, a name of the hub in the local
            cache, or another entry as {name: NAME, setting: value}.
        extractor: of images, by name or as {name: inception, weights: ...}; it must be none that
            learns from a data set, for there is none of images here.
        batch_size: latents decoded at a time.
        rounding: of decoded pixels to uint8, which evaluation.protocol sets: nearest | half_up |
            truncate.
    """

    autoencoder: Any = ""
    extractor: Any = "inception"
    batch_size: int = 32
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_choice("extractor.rounding", self.rounding, ROUNDINGS)
        check_range("extractor.batch_size", self.batch_size, 1)

    @cached_property
    def _inner(self) -> Extractor:
        setting = "evaluation.extractor.extractor"
        inner: Extractor = build_named(EXTRACTORS, setting, self.extractor)
        if getattr(inner, "learns", False) or isinstance(inner, Decoded):
            raise UserError(
                f"{setting}: {self.extractor!r} does not work on decoded images; take one that "
                "learns nothing from a data set (inception, dinov2, random_conv, raw)"
            )
        return inner

    @cached_property
    def _autoencoder(self) -> AutoencoderEntry:
        return entry_of("evaluation.extractor.autoencoder", self.autoencoder)

    @cached_property
    def _decoder(self) -> Autoencoder:
        return Autoencoder(self._autoencoder, accelerator())

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.batch_size)

    def decode(self, x: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> uint8 images; images pass through."""
        return x if x.dtype == torch.uint8 else self._decoder.decode(x, self.rounding)

    def images_of(self, latents: Tensor) -> Tensor:
        """uint8 images of any number of ``latents``."""
        return torch.cat([self.decode(part) for part in self._parts(latents)])

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(getattr(self._inner, "layer_names", ()))

    def content(self) -> str | None:
        """Of the autoencoder's folder, and of what the inner extractor is made of."""
        inner = getattr(self._inner, "content", lambda: None)()
        files = self._autoencoder.files() if self.autoencoder else ()
        return content_sha256(files, inner, third_party_hash(self._inner))

    def check(self, dataset: Dataset) -> None:
        if dataset.is_image or len(dataset.shape) != 3:
            has = f"{dataset.train.x.dtype} of shape {dataset.shape}"
            raise unfit("decoded", "latents", dataset, has)
        if not self.autoencoder:
            raise UserError(
                "extractor decoded needs the latents' autoencoder: write "
                "{name: decoded, autoencoder: FOLDER, extractor: inception}"
            )
        self._autoencoder.check()
        _ = self._inner

    def prepare(self, dataset: Dataset, cache: Path) -> Features:
        self.check(dataset)
        autoencoder = self._decoder
        shape = autoencoder.images_of(dataset.shape)
        one = Split(torch.zeros(1, *shape, dtype=torch.uint8))
        images = Dataset(f"{dataset.name}, decoded", one, one, 0)
        self._inner.check(images)
        of = prepared(self._inner, images, cache)
        identity: tuple[Any, ...] = (
            autoencoder.sha256, autoencoder.scale, autoencoder.shift, of.sha256
        )  # fmt: skip
        if self.rounding != "nearest":
            identity += (self.rounding,)

        def extract(x: Tensor) -> np.ndarray:
            return np.concatenate([of.extract(self.decode(part)) for part in self._parts(x)])

        def layers(x: Tensor, names: Collection[str]) -> dict[str, np.ndarray]:
            assert of.layers is not None
            parts = [of.layers(self.decode(part), names) for part in self._parts(x)]
            return {name: np.concatenate([part[name] for part in parts]) for name in names}

        return Features(
            f"decoded-{of.name}",
            hashlib.sha256(repr(identity).encode()).hexdigest(),
            extract,
            resize=of.resize,
            is_fid=of.is_fid,
            of=of,
            decode=self.decode,
            image_shape=shape,
            layers=None if of.layers is None else layers,
        )
