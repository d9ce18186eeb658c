"""Checkpoints: safetensors and JSON, whole or not there, the previous one kept. No pickle.

::

    checkpoints/step-00000500/tensors.safetensors
    checkpoints/step-00000500/state.json            {"step", "sha256" of the tensors, ...}

A checkpoint is written under a temporary name, synced to disk, and renamed; only then is the oldest
removed. A damaged one is skipped with a warning for the one before it. Rank 0 reads, and broadcasts
what it read: a file system may show the others different things.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from fewstep.experiments.distributed.process_group import ranks
from fewstep.files import patiently

KEPT = 2
LEFT_SECONDS = 600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """``tensors`` by name and a JSON ``state``, both as saved after ``step`` updates."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` into ``folder`` and remove all but it and the one before it."""
    final = write(folder, checkpoint)
    # not later ones: if they are damaged training comes by and replaces them, and if they are not,
    # this process was suspended, and another has gone on meanwhile
    for path in sorted(p for p in folder.glob("step-*") if p.name <= final.name)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into ``folder`` beside what is there; returns its own folder."""
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    for leftover in folder.glob(".step-*"):  # of a process that was killed while writing
        if leftover.name.endswith(f".{os.getpid()}") or _is_old(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(exist_ok=True)  # without its parents: somebody may have removed the run
    temporary.mkdir()
    try:
        _write(temporary, checkpoint)
    except BaseException:  # a full disk needs the room, not least to record why the run failed
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():  # damaged, else training would have gone on from it
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    return final


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    tensors = folder / "tensors.safetensors"
    save_file({k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}, tensors)
    state = {**checkpoint.state, "step": checkpoint.step, "sha256": _sha256(tensors.read_bytes())}
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    for path in (tensors, folder / "state.json", folder):
        _sync(path)


def _is_old(path: Path) -> bool:
    """Not of another process that is writing now."""
    try:
        return time.time() - path.stat().st_mtime > LEFT_SECONDS
    except FileNotFoundError:
        return False


def load_latest(folder: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none: the run starts at step 0.

    ``step``: only one of this step. Collective: all processes of a run come here together.
    """
    everyone = ranks()
    name = "step-*" if step is None else f"step-{step:08d}"
    saved, outline = _newest(folder, name) if everyone.is_main else None, None
    if saved is not None:
        shapes = {name: (x.shape, x.dtype) for name, x in saved.tensors.items()}
        outline = saved.step, saved.state, shapes
    outline = everyone.broadcast(outline)
    if outline is None:
        return None
    step, state, shapes = outline
    if saved is None:
        empty = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        saved = Checkpoint(step, empty, state)
    for tensor in saved.tensors.values():
        everyone.broadcast_tensor(tensor)
    return saved


def _newest(folder: Path, name: str) -> Checkpoint | None:
    away: OSError | None = None
    for path in sorted(folder.glob(name), reverse=True):
        try:
            return patiently(partial(_load, path))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s): going back to the one before", path, error)
            missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            away = error if isinstance(error, OSError) and not missing else away
    if away is not None:  # they may be whole: to begin at step 0 would remove them
        raise away
    return None


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text())
    content = (path / "tensors.safetensors").read_bytes()
    if _sha256(content) != state["sha256"]:
        raise ValueError(f"tensors.safetensors of {len(content)} bytes is not what was written")
    tensors = load(content)
    for old, new in (("learned", "auxiliary"), ("former", "snapshot")):
        pattern = rf"^(optimiser\.\w+\.)?{old}\."  # how version 0.1 called them
        tensors = {re.sub(pattern, rf"\1{new}.", name): x for name, x in tensors.items()}
    return Checkpoint(state["step"], tensors, state)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
