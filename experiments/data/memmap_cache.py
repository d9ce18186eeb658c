"""Data sets that are made once and kept, as flat files that every run maps into its memory.

::

    CACHE/NAME-HASH/            HASH: of all that the arrays are made from
        manifest.json           shapes, dtypes, and the hash of what is in each split
        train.x, train.y, ...   the arrays, row by row, as they lie in memory

The first process makes the folder, under a lock and another name; the others wait. What was read
stays in the system's file cache, once for all processes: a data set may exceed the memory.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data.base import Split, hash_array
from fewstep.experiments.progress import report_progress
from fewstep.experiments.store.json_files import Json, read_json, write_json
from fewstep.files import locked, resolved

Block = Mapping[str, NDArray[Any]]
"""Consecutive rows of ``x``; of ``std``, for latents; of ``y``, where it was not known before."""


@dataclass(frozen=True)
class SplitSource:
    """A split to be kept: ``count`` rows, which come in ``blocks`` of one shape and dtype.

    ``y``: (count,), where it is known before.
    """

    count: int
    blocks: Iterable[Block]
    y: NDArray[np.int64] | None = None


def cache_folder(setting: str) -> Path:
    """Where made data sets are kept: ``setting``, else FEWSTEP_CACHE, else the user's cache."""
    if chosen := setting or os.environ.get("FEWSTEP_CACHE"):
        return resolved(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "fewstep"


def cached_splits(
    cache: str, name: str, identity: Json, make: Callable[[], Mapping[str, SplitSource]]
) -> tuple[Split, Split]:
    """The splits ``train`` and ``test`` that ``make`` gives, made only if they are not kept yet.

    ``identity`` is JSON of everything the arrays are made from. Raises ``UserError`` for a cache
    that cannot be written, or is damaged.
    """
    folder = cache_folder(cache)
    text = json.dumps(identity, sort_keys=True)
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "data"
    target = folder / f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not target.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / f"{target.name}.lock"):
                if not target.is_dir():
                    _write(target, identity, make())
        except OSError as error:
            raise UserError(
                f"cannot keep {name} in {folder} ({error.strerror or error}); choose another "
                f"folder with data.cache=DIR or FEWSTEP_CACHE"
            ) from None
    return _open(target, "train"), _open(target, "test")


def _write(target: Path, identity: Json, parts: Mapping[str, SplitSource]) -> None:
    for old in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(old, ignore_errors=True)  # of a process that was killed: we hold the lock
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        splits = {split: _write_part(temporary, split, part) for split, part in parts.items()}
        write_json(temporary / "manifest.json", {"identity": identity, "splits": splits})
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_part(folder: Path, split: str, part: SplitSource) -> Json:
    """Write one split's files; what the manifest says of it, with the hash ``Split`` would have."""
    files: dict[str, IO[bytes]] = {}
    arrays: dict[str, Json] = {}
    digests = {}
    rows, labels = 0, [] if part.y is None else [part.y]
    with ExitStack() as stack:
        for block in report_progress(split, part.blocks, part.count, lambda b: len(b["x"])):
            for name in [name for name in block if name != "y"]:
                array = np.ascontiguousarray(block[name])
                shape, dtype = (part.count, *array.shape[1:]), array.dtype.str
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{split}.{name}").open("wb"))
                    arrays[name] = {"shape": shape, "dtype": dtype}
                    digests[name] = hashlib.sha256(f"{dtype}{shape}".encode())
                assert arrays[name] == {"shape": shape, "dtype": dtype}, (arrays[name], shape)
                files[name].write(array.data)
                digests[name].update(array.data)
            rows += len(block["x"])
            labels += [block["y"]] if "y" in block else []
        assert rows == part.count, f"{rows} rows where {part.count} were promised"
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    digest = digests["x"]
    if labels:
        y = np.concatenate(labels)
        y = y.astype(np.float32 if y.dtype.kind == "f" else np.int64)
        assert len(y) == part.count, f"{len(y)} labels where {part.count} were promised"
        y.tofile(folder / f"{split}.y")
        arrays["y"] = {"shape": y.shape, "dtype": y.dtype.str}
        hash_array(digest, y)
    else:
        digest.update(b"none")
    if "std" in digests:
        digest.update(digests["std"].digest())
    return {"arrays": arrays, "sha256": digest.hexdigest()}


def _open(target: Path, split: str) -> Split:
    """Map the files of one split; labels are read, they are small."""
    manifest = read_json(target / "manifest.json")
    try:
        assert manifest is not None
        stored = manifest["splits"][split]
        arrays = {
            name: _mapped(target / f"{split}.{name}", array["dtype"], tuple(array["shape"]))
            for name, array in stored["arrays"].items()
        }
        y = torch.from_numpy(np.array(arrays["y"])) if "y" in arrays else None
        std = as_tensor(arrays["std"]) if "std" in arrays else None
        return Split(as_tensor(arrays["x"]), y, std, str(stored["sha256"]))
    except (AssertionError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{target} is damaged ({error or 'no manifest.json'}): remove it, and it is made again"
        ) from None


def _mapped(file: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    size = file.stat().st_size
    assert size == expected, f"{file.name} has {size} bytes, expected {expected}"
    # read-only: the system may refuse a writable map that is larger than its memory
    return np.memmap(file, dtype, "r", shape=shape)


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A read-only array as a tensor, without a copy; writing into it would end the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def in_blocks(count: int, size: int) -> Iterator[range]:
    """0 ... count - 1 in ranges of at most ``size``."""
    return (range(begun, min(count, begun + size)) for begun in range(0, count, size))
