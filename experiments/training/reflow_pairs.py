"""Stored pairs of noise and what a teacher makes of it, for objectives that train on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.experiments.data import Dataset, Rows, take
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.rng import generator
from fewstep.files import replacing
from fewstep.objectives import Net, Objective

BLOCK = 1024  # pairs in a file: what an interruption can cost


@dataclass(frozen=True)
class Pairs:
    """``x``, ``eps``: (N, ...) scaled for the network; ``y``: (N,) or None."""

    x: Tensor
    eps: Tensor
    y: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Rows:
        """Copies of the pairs at ``index``, (B,) int64."""
        y = None if self.y is None else take(self.y, index)
        return Rows(take(self.x, index), y, eps=take(self.eps, index))


def stored_pairs(
    folder: Path,
    objective: Objective,
    teacher: Net,
    dataset: Dataset,
    seed: int,
    count: int,
    device: torch.device,
    on_block: Callable[[int, int], None],
) -> Pairs:
    """``count`` pairs, in files of ``BLOCK``; those that ``folder`` has are not drawn again.

    Noise and labels depend on the seed alone. ``teacher`` may raise to stop early. Of several
    processes, which share the teacher's rows, the first writes the files and has them read.
    """
    is_main, broadcast = ranks().is_main, ranks().broadcast
    if is_main:
        folder.mkdir(exist_ok=True)  # without its parents: somebody may have removed the run
    blocks = [min(BLOCK, count - begun) for begun in range(0, count, BLOCK)]
    there = broadcast({i for i in range(len(blocks)) if _file(folder, i).exists()})
    for i, size in enumerate(blocks):
        file = _file(folder, i)
        if i not in there:
            g = generator(seed, "pairs", i)
            eps = torch.randn(size, *dataset.shape, generator=g)
            y = dataset.train.y
            if y is not None:
                y = y[torch.randint(len(y), (size,), generator=g)]
            x = objective.make_pairs(teacher, eps.to(device), None if y is None else y.to(device))
            if not bool(torch.isfinite(x).all()):
                raise FloatingPointError("the teacher's samples are not finite")
            tensors = {"x": x.cpu().contiguous(), "eps": eps}
            if is_main:
                with replacing(file) as other:
                    save_file(tensors if y is None else {**tensors, "y": y}, other)
        on_block(i + 1, len(blocks))
    files = broadcast([load_file(_file(folder, i)) for i in range(len(blocks))] if is_main else [])
    y = torch.cat([f["y"] for f in files]) if "y" in files[0] else None
    return Pairs(torch.cat([f["x"] for f in files]), torch.cat([f["eps"] for f in files]), y)


def _file(folder: Path, block: int) -> Path:
    return folder / f"{block:05d}.safetensors"
