"""Latents that ``fewstep encode`` (or another program) has made of images: a folder of shards.

::

    FOLDER/
        manifest.json               what they are made of and how, and each shard's hash
        train-00000.safetensors     "mean", "std" (n, C, H, W), and "y" (n,) int64 with labels
        ...
        test-00000.safetensors

``mean`` and ``std`` are of the autoencoder's posterior, times its scaling factor: what a network is
trained on is ``mean + std * eps``, or ``mean``. docs/data.md has the manifest's fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data.base import DATA, Dataset, Split
from fewstep.experiments.data.store import Part, kept
from fewstep.experiments.rundir import Json, read_json
from fewstep.experiments.settings import bookkeeping

FORMAT = 1
SPLITS = ("train", "test")
DTYPES = ("float32", "float16")
POSTERIORS = ("sample", "mean")


@DATA.register("latents")
@dataclass(frozen=True)
class Latents:
    """Latents of an autoencoder, from a folder that ``fewstep encode`` has made.

    The shards are checked once and kept as one file, in the cache, that is mapped into memory.

    Attributes:
        folder: below ``root``, or absolute; it is part of a run's identity, as it is written.
        posterior: sample (drawn anew in each step, as DiT, SiT and EDM2 do) or mean.
    """

    suggested_backbone: ClassVar[str] = "dit_s_2"

    root: str = "data"
    folder: str = "latents"
    posterior: str = "sample"
    cache: str = bookkeeping("")

    def __post_init__(self) -> None:
        check_choice("data.posterior", self.posterior, POSTERIORS)

    def load(self) -> Dataset:
        place = Path(self.root).expanduser() / self.folder
        manifest = read_manifest(place)
        shape, dtype = tuple(manifest["shape"]), np.dtype(manifest["dtype"]).str

        def make() -> dict[str, Part]:
            return {split: part(split) for split in SPLITS}

        def part(split: str) -> Part:
            count, blocks = manifest["splits"][split]["count"], shards(place, manifest, split)
            return Part(count, shape, dtype, blocks, names=("x", "std"))

        splits = kept(self.cache, place.resolve().name, {"format": FORMAT, **manifest}, make)
        if self.posterior == "mean":
            train, test = (Split(s.x, s.y, None, s.sha256) for s in splits)  # the same reference
            splits = train, test
        return Dataset(place.resolve().name, *splits, manifest["num_classes"])


def read_manifest(place: Path) -> Json:
    """The manifest of a folder of latents.

    Raises:
        UserError: there is none, or one that says something impossible.
    """
    file = place / "manifest.json"
    manifest = read_json(file)
    if manifest is None:
        raise UserError(
            f"no latents in {place}: it has no manifest.json (fewstep encode makes one)"
        )
    try:
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
        if manifest["dtype"] not in DTYPES:
            raise ValueError(f"dtype {manifest['dtype']!r} (choices: {', '.join(DTYPES)})")
        if len(manifest["shape"]) != 3:
            raise ValueError(f"shape {manifest['shape']}, expected [C, H, W]")
        for split in SPLITS:
            told = manifest["splits"][split]
            counts = sum(shard["count"] for shard in told["shards"])
            if counts != told["count"] or counts < 1:
                raise ValueError(f"{split} of {told['count']}, its shards hold {counts}")
        _ = manifest["num_classes"] + 0
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is no manifest of latents ({reason})") from None
    return manifest


def shards(place: Path, manifest: Json, split: str) -> Iterator[dict[str, NDArray[Any]]]:
    """The shards of a split, checked: their bytes, names, shapes and types; ``x`` is the mean."""
    for told in manifest["splits"][split]["shards"]:
        yield read_shard(place / told["file"], told, manifest)


def read_shard(file: Path, told: Json, manifest: Json) -> dict[str, NDArray[Any]]:
    """Raises ``UserError`` unless it is the shard that ``told`` speaks of."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing: its manifest.json tells of it") from None
    found = hashlib.sha256(raw).hexdigest()
    if found != told["sha256"]:
        raise UserError(
            f"{file} is not the shard of its manifest.json: {len(raw)} bytes of sha256 "
            f"{found[:12]}, expected {str(told['sha256'])[:12]}"
        )
    try:
        arrays = load(raw)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} is no safetensors file ({error})") from None
    rows = (told["count"], *manifest["shape"])
    due = {"mean": (rows, manifest["dtype"]), "std": (rows, manifest["dtype"])}
    if manifest["num_classes"]:
        due["y"] = ((told["count"],), "int64")
    have = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    if have != due:
        raise UserError(f"{file} holds {describe(have)}, expected {describe(due)}")
    if not all(np.isfinite(arrays[name]).all() for name in ("mean", "std")):
        raise UserError(f"{file} holds numbers that are not finite")
    return {"x": arrays["mean"], "std": arrays["std"], **{k: arrays[k] for k in due.keys() & {"y"}}}


def describe(arrays: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """Names, shapes and types in one line."""
    return json.dumps({n: f"{t} {list(shape)}" for n, (shape, t) in sorted(arrays.items())})
