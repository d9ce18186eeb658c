"""How fast a run's batches can be loaded, from memory and from files, against a training step."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.experiments.cost.step_benchmark import Bench, Setting, Subject, synchronise
from fewstep.experiments.data import Rows, Split, to_model
from fewstep.experiments.data.memmap_cache import SplitSource, cached_splits, in_blocks
from fewstep.experiments.progress import OnProgress
from fewstep.experiments.rng import Order
from fewstep.experiments.training.prefetch import Loader
from fewstep.objectives import Objective

MOST = 2**29  # bytes of the split that are measured on
SHORTEST = 0.2  # seconds of a measurement
ENDLESS = 10**9  # steps


@dataclass(frozen=True)
class Speed:
    """``loaded``, ``trained``: images a second of each alone. ``waits``: share of both together."""

    where: str
    loaded: float
    trained: float
    waits: float

    @property
    def share(self) -> float:
        """Of a training step's time, that a batch's loading takes."""
        return self.trained / self.loaded


def measure(
    setting: Setting, objective: Objective, split: Split, rounds: int, on_progress: OnProgress
) -> list[Speed]:
    """Batches of ``split`` (of a part of it, where it is large) in the order of training.

    In memory, memory-mapped, and memory-mapped with nothing of it in the system's cache of files
    (where the system allows to say so). Medians over ``rounds``, in each of which all are measured.
    """
    subject = Subject(objective, Bench(setting))
    subject.step()
    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as name:
        there = cut(split)
        mapped = on_disk(there, name)
        files = [file for file in Path(name).rglob("train.*") if file.is_file()]
        places: dict[str, tuple[Split, list[Path]]]
        places = {"memory": (there, []), "memory-mapped": (mapped, [])}
        if hasattr(os, "posix_fadvise"):
            places["memory-mapped, from disk"] = mapped, files
        timings = []
        begun = time.perf_counter()
        for i in range(rounds):
            timings.append([once(subject, source, cold, i) for source, cold in places.values()])
            on_progress("time", i + 1, rounds, (i + 1) / (time.perf_counter() - begun))
    medians = np.median(np.array(timings), axis=0)
    return [Speed(where, *map(float, row)) for where, row in zip(places, medians, strict=True)]


def once(
    subject: Subject, source: Split, cold: list[Path], seed: int
) -> tuple[float, float, float]:
    """Images a second loaded, images a second trained on, share of waiting in both together.

    ``cold``: files that are not in the system's cache at the beginning.
    """
    bench = subject.bench
    batch, device = bench.setting.batch, bench.setting.device
    order = Order(seed, len(source), batch)

    def placed(rows: Rows) -> None:
        x, y, std, _ = (None if a is None else a.to(device) for a in rows)
        assert x is not None
        x = to_model(x)
        bench.x = x if std is None else x + std.float() * bench.eps
        bench.y = y

    def run(work: Callable[[int], None]) -> tuple[int, float]:
        synchronise(device)
        steps, begun = 0, time.perf_counter()
        while steps < 3 or time.perf_counter() - begun < SHORTEST:
            work(steps)
            synchronise(device)
            steps += 1
        return steps, time.perf_counter() - begun

    order.batch(0)  # the permutation of an epoch is drawn once
    forget(cold)
    steps, seconds = run(lambda i: placed(source.rows(order.batch(i))))
    loaded = batch * steps / seconds
    steps, seconds = run(lambda i: subject.step())
    trained = batch * steps / seconds
    forget(cold)
    waited, loader = 0.0, Loader(source, order, ENDLESS)

    def step(i: int) -> None:
        nonlocal waited
        begun = time.perf_counter()
        placed(loader.rows(i))
        synchronise(device)
        waited += time.perf_counter() - begun if i else 0.0  # nothing is ahead of the first
        subject.step()

    steps, seconds = run(step)
    return loaded, trained, waited / seconds * steps / max(1, steps - 1)


def cut(split: Split) -> Split:
    """The first rows of ``split``, as many as fit into ``MOST`` bytes, in memory."""
    row = split.x[:1].nbytes * (1 if split.std is None else 2)
    n = min(len(split), max(1, MOST // row))
    y, std = (None if a is None else a[:n].clone() for a in (split.y, split.std))
    return Split(split.x[:n].clone(), y, std)


def on_disk(split: Split, folder: str) -> Split:
    """The same, memory-mapped, in files in ``folder``."""
    arrays = {"x": split.x.numpy()} | ({} if split.std is None else {"std": split.std.numpy()})

    def part(count: int) -> SplitSource:
        def blocks() -> Iterator[Mapping[str, NDArray[np.generic]]]:
            for rows in in_blocks(count, 1024):
                yield {name: array[rows.start : rows.stop] for name, array in arrays.items()}

        return SplitSource(count, blocks(), None if split.y is None else split.y[:count].numpy())

    parts = {"train": part(len(split)), "test": part(1)}
    return cached_splits(folder, "bench", {}, lambda: parts)[0]


def forget(files: list[Path]) -> None:
    """Have the system drop what it keeps of ``files`` in memory."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
