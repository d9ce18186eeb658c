"""The batches of a run, each fetched while the step before it is at work."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from torch import Tensor

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Rows
from fewstep.experiments.rng import ClassOrder, Order


class Source(Protocol):
    """Examples by index, and their conditions: a split, or pairs."""

    @property
    def y(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Rows: ...


class Loader:
    """The rows of each step, in an ``order`` that knows them all, so that reading ahead is safe.

    One thread fetches the rows of the next step, up to that of ``steps``: what is memory-mapped
    may have to come from a disk.
    """

    def __init__(self, source: Source, order: Order | ClassOrder, steps: int) -> None:
        self.source, self.order, self.steps = source, order, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._next: tuple[int, Future[Rows]] | None = None

    def rows(self, step: int) -> Rows:
        """The rows of ``step``, counted from 0; any step may be asked for, in any order."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == step:
            rows = ahead[1].result()
        else:
            rows = self.source.rows(self.order.batch(step))
        if step + 1 < self.steps:  # the order is asked here: it is no business of two threads
            index = self.order.batch(step + 1)
            self._next = step + 1, self._thread.submit(self.source.rows, index)
        return rows


def loader(config: RunConfig, source: Source) -> Loader:
    """The rows of each step of a run, taken from ``source``."""
    training = config.training
    seed, size, rows = config.seed, training.batch_size, training.class_rows
    order: Order | ClassOrder = Order(seed, len(source), size)
    if rows is not None:
        assert source.y is not None, "validation.check_settings() asks for classes"
        order = ClassOrder(seed, source.y, size, rows)
    return Loader(source, order, training.steps)
