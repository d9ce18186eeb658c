"""Latents that ``fewstep encode`` (or another program) has made of images: a folder of shards.

::

    FOLDER/
        manifest.json               what they are made of and how, and each shard's hash
        train-00000.safetensors     "mean", "std" (n, C, H, W), and "y" (n,) int64 with labels,
                                    (n, k) float32 with condition vectors. No "std" where the
                                    manifest says "deterministic": an image has one latent
        ...
        test-00000.safetensors

``mean`` and ``std`` are of the autoencoder's posterior, times its scaling factor: what a network is
trained on is ``mean + std * eps``, or ``mean``. docs/data.md has the manifest's fields.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from fewstep.errors import UserError, check_choice
from fewstep.experiments.data.base import DATA, Dataset, Split, without_labels
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.data.known import check_name, declared
from fewstep.experiments.data.memmap_cache import SplitSource, cached_splits
from fewstep.experiments.store.json_files import Json, read_json
from fewstep.files import below
from fewstep.registry import added, bookkeeping

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
        expected: the shapes, as "4x32x32 classes=1000 train=1281167 test=50000": other latents are
            refused, and --plan works before they are there.
        labels: whether to take classes or condition vectors.
        is_: written data.is, the public data set whose images were encoded ("imagenet_256"): others
            are refused, and the report finds the numbers that papers have for it.
    """

    suggested_backbone: ClassVar[str] = "dit_s_2"

    root: str = "data"
    folder: str = "latents"
    posterior: str = "sample"
    cache: str = bookkeeping("")
    expected: str = bookkeeping("")
    labels: bool = added(True)
    is_: str = bookkeeping("")

    def __post_init__(self) -> None:
        check_name(self.is_)
        check_choice("data.posterior", self.posterior, POSTERIORS)
        _ = self.expected and Expected.parse(self.expected)

    def placeholder(self) -> Dataset | None:
        if not self.expected:
            return None
        expected, name = Expected.parse(self.expected), Path(self.folder).name
        return expected.placeholder(name, torch.float32, drawn=self.posterior == "sample")

    def load(self) -> Dataset:
        folder = below(self.root, self.folder)
        name, manifest = Path(os.path.abspath(folder)).name, read_manifest(folder)

        def part(split: dict[str, Any]) -> SplitSource:
            blocks = (read_shard(folder / s["file"], s, manifest) for s in split["shards"])
            return SplitSource(split["count"], blocks)

        def parts() -> dict[str, SplitSource]:
            return {split: part(manifest["splits"][split]) for split in SPLITS}

        identity = {"format": FORMAT, **manifest}
        train, test = cached_splits(self.cache, name, identity, parts)
        if self.posterior == "mean":
            train, test = (Split(s.x, s.y, None, s.sha256) for s in (train, test))  # same reference
        dataset = Dataset(name, train, test, manifest["num_classes"])
        dataset = dataset if self.labels else without_labels(dataset)
        if self.is_:
            dataset = declared(dataset, self.is_, image_shape(manifest, folder))
        return Expected.parse(self.expected).check(dataset) if self.expected else dataset


def read_manifest(folder: Path) -> Json:
    """The manifest of a folder of latents; ``UserError`` without a valid one."""
    file = folder / "manifest.json"
    if (manifest := read_json(file)) is None:
        raise UserError(
            f"no latents in {folder}: it has no manifest.json (fewstep encode makes one)"
        )
    try:
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
        if manifest["dtype"] not in DTYPES:
            raise ValueError(f"dtype {manifest['dtype']!r} (choices: {', '.join(DTYPES)})")
        if len(manifest["shape"]) != 3:
            raise ValueError(f"shape {manifest['shape']}, expected [C, H, W]")
        for split in SPLITS:
            stated = manifest["splits"][split]
            counts = sum(shard["count"] for shard in stated["shards"])
            if counts != stated["count"] or counts < 1:
                raise ValueError(f"{split} of {stated['count']}, its shards hold {counts}")
        _ = manifest["num_classes"] + manifest.get("condition_dim", 0)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is not a valid manifest of latents ({reason})") from None
    return manifest


def image_shape(manifest: Json, folder: Path) -> tuple[int, ...]:
    """(C, H, W) of the images that were encoded; ``UserError`` where the manifest has not both
    their shape and the latents', or they contradict the autoencoder's factor.
    """
    file = folder / "manifest.json"
    shape = (manifest.get("source") or {}).get("shape")
    factor = (manifest.get("autoencoder") or {}).get("factor")
    sides = manifest["shape"][1:]
    if not shape and not factor:
        raise UserError(
            f"{file} does not say how large the images were, so data.is cannot be checked: add "
            f'"source": {{"shape": [C, H, W]}} or "autoencoder": {{"factor": N}}'
        )
    if shape and factor and list(shape[1:]) != [factor * side for side in sides]:
        raise UserError(
            f"{file} contradicts itself: images of {'x'.join(map(str, shape))}, latents of "
            f"{'x'.join(map(str, manifest['shape']))}, an autoencoder of factor {factor}"
        )
    return tuple(shape) if shape else (3, *(factor * side for side in sides))


def read_shard(file: Path, shard: Json, manifest: Json) -> dict[str, NDArray[Any]]:
    """The arrays of a ``shard``, ``x`` the mean; ``UserError`` unless they are the manifest's."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing: its manifest.json names it") from None
    sha256, stated = hashlib.sha256(raw).hexdigest(), str(shard["sha256"])
    if sha256 != stated:
        content = f"{len(raw)} bytes of sha256 {sha256[:12]}, expected {stated[:12]}"
        raise UserError(f"{file} is not the shard of its manifest.json: {content}")
    try:
        arrays = load(raw)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} is no safetensors file ({error})") from None
    rows = (shard["count"], *manifest["shape"])
    moments = ("mean",) if manifest.get("deterministic") else ("mean", "std")
    expected = dict.fromkeys(moments, (rows, manifest["dtype"]))
    if manifest["num_classes"]:
        expected["y"] = ((shard["count"],), "int64")
    if k := manifest.get("condition_dim"):
        expected["y"] = ((shard["count"], k), "float32")
    have = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    if have != expected:
        raise UserError(f"{file} holds {describe(have)}, expected {describe(expected)}")
    if not all(np.isfinite(arrays[name]).all() for name in moments):
        raise UserError(f"{file} holds numbers that are not finite")
    return {"x": arrays.pop("mean"), **arrays}


def describe(arrays: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """Names, shapes and types in one line."""
    return json.dumps({n: f"{t} {list(shape)}" for n, (shape, t) in sorted(arrays.items())})
