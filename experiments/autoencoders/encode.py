"""Images to a folder of latents: shard by shard, so that it can be stopped at any time.

A shard is made of fixed batches that begin with it, in float32 on one device: what comes out does
not depend on how often it was stopped.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from numpy.typing import NDArray
from safetensors.numpy import save

from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.autoencoders.base import Autoencoder
from fewstep.experiments.data import Dataset, Split
from fewstep.experiments.data.latents import DTYPES, FORMAT, SPLITS
from fewstep.experiments.data.memmap_cache import in_blocks
from fewstep.experiments.progress import OnProgress
from fewstep.experiments.store.json_files import Json, read_json, write_json
from fewstep.files import locked, write_file

MANIFEST, PARTIAL = "manifest.json", "partial.json"


@dataclass(frozen=True)
class Settings:
    """How images are encoded.

    Attributes:
        dtype: of the latents, float32 | float16. batch_size: images encoded at a time.
        shard: images in a file.
    """

    dtype: str = "float32"
    batch_size: int = 32
    shard: int = 10_000

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_range("batch_size", self.batch_size, 1)
        check_range("shard", self.shard, 1)


def encode(
    dataset: Dataset,
    source: Json,
    autoencoder: Autoencoder,
    output: Path,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda split, done, total, rate: None,
) -> bool:
    """Fill ``output`` with the latents of ``dataset``; False if ``stop()`` became true meanwhile.

    Shards that are there are not made again. ``source``: the data set's settings, for the record.
    Raises ``UserError`` for images the autoencoder does not take, or a folder of something else.
    """
    if not dataset.is_image:
        raise UserError(f"{dataset.name} is not made of images")
    plan = {
        "format": FORMAT,
        "shape": list(autoencoder.shape_of(dataset.shape)),
        "dtype": settings.dtype,
        "num_classes": dataset.num_classes,
        **({"condition_dim": dataset.condition_dim} if dataset.condition_dim else {}),
        "batch_size": settings.batch_size,
        "shard": settings.shard,
        **({} if autoencoder.has_posterior else {"deterministic": True}),
        "autoencoder": {
            "name": autoencoder.name,
            "sha256": autoencoder.sha256,
            "scaling_factor": autoencoder.scale,
            "shift_factor": autoencoder.shift,
            "factor": autoencoder.factor,
        },
        "source": {
            "data": source,
            "shape": list(dataset.shape),
            **{f"{name}_sha256": getattr(dataset, name).sha256 for name in SPLITS},
        },
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / ".lock", seconds=1):
            return _Encoding(dataset, autoencoder, output, settings, plan).run(stop, on_progress)
    except Timeout:
        raise UserError(f"another process is writing latents to {output}") from None
    except OSError as error:
        raise UserError(f"cannot write latents to {output} ({error.strerror or error})") from None


@dataclass
class _Encoding:
    dataset: Dataset
    autoencoder: Autoencoder
    output: Path
    settings: Settings
    plan: Json
    done: Json = field(default_factory=dict)

    def run(self, stop: Callable[[], bool], on_progress: OnProgress) -> bool:
        if (finished := read_json(self.output / MANIFEST)) is not None:
            self._check_same(finished, MANIFEST)
            return True
        if (partial := read_json(self.output / PARTIAL)) is not None:
            self._check_same(partial["plan"], PARTIAL)
            self.done = partial["shards"]
        elif any(not entry.name.startswith(".") for entry in self.output.iterdir()):
            raise UserError(f"{self.output} holds something else than latents: name another folder")
        splits = {}
        for name in SPLITS:
            split: Split = getattr(self.dataset, name)
            if (shards := self._split(name, split, stop, on_progress)) is None:
                return False
            splits[name] = {"count": len(split), "shards": shards}
        write_json(self.output / MANIFEST, {**self.plan, "splits": splits})
        (self.output / PARTIAL).unlink(missing_ok=True)
        return True

    def _check_same(self, existing: Json, file: str) -> None:
        # the autoencoder and the data may have been moved
        def content(plan: Json) -> Json:
            kept = {key: plan.get(key) for key in self.plan if key not in ("autoencoder", "source")}
            for part, names in (("autoencoder", ("name", "factor")), ("source", ("data",))):
                kept |= {f"{part}.{k}": v for k, v in plan[part].items() if k not in names}
            return kept

        old, path = content(existing), self.output / file
        for key, expected in content(self.plan).items():
            if (value := old.get(key)) != expected:
                other = f"{key} is {value!r}, expected {expected!r}"
                raise UserError(f"{path} is of other latents: {other}; name another folder")

    def _split(
        self, name: str, split: Split, stop: Callable[[], bool], on_progress: OnProgress
    ) -> list[Json] | None:
        shards, begun, fresh = [], time.perf_counter(), 0
        for i, rows in enumerate(in_blocks(len(split), self.settings.shard)):
            file = f"{name}-{i:05d}.safetensors"
            if not self._is_whole(file):
                parts = []
                for batch in in_blocks(len(rows), self.settings.batch_size):
                    if stop():
                        return None
                    index = torch.arange(rows.start + batch.start, rows.start + batch.stop)
                    parts.append(self.autoencoder.encode(split.rows(index).x))
                    fresh += len(index)
                    rate = fresh / (time.perf_counter() - begun)
                    on_progress(name, int(index[-1]) + 1, len(split), rate)
                y = None if split.y is None else split.y[rows.start : rows.stop].numpy()
                self._keep(file, parts, y)
            shards.append(self.done[file])
        return shards

    def _is_whole(self, file: str) -> bool:
        path = self.output / file
        if file not in self.done or not path.is_file():
            return False
        # the machine may have gone down while it was written
        return hashlib.sha256(path.read_bytes()).hexdigest() == self.done[file]["sha256"]

    def _keep(
        self,
        file: str,
        parts: list[tuple[torch.Tensor, torch.Tensor | None]],
        y: NDArray[np.int64] | None,
    ) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        with np.errstate(over="ignore"):
            for name, tensors in zip(("mean", "std"), zip(*parts, strict=True), strict=True):
                if found := [tensor for tensor in tensors if tensor is not None]:
                    arrays[name] = torch.cat(found).numpy().astype(self.settings.dtype)
        dtype, name = self.settings.dtype, self.autoencoder.name
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise UserError(f"latents of {file} are not finite in {dtype} (is {name} whole?)")
        raw = save(arrays if y is None else {**arrays, "y": np.ascontiguousarray(y)})
        write_file(self.output / file, raw)
        sha256 = hashlib.sha256(raw).hexdigest()
        self.done[file] = {"file": file, "count": len(arrays["mean"]), "sha256": sha256}
        write_json(self.output / PARTIAL, {"plan": self.plan, "shards": self.done})
