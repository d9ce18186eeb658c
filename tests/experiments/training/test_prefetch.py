"""The loader reads ahead and gives what was asked for, whatever is asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fewstep.experiments.cost.loading_benchmark import cut, measure, on_disk
from fewstep.experiments.data import Rows, Split
from fewstep.experiments.rng import Order
from fewstep.experiments.training.prefetch import Loader

X = torch.arange(10 * 4, dtype=torch.uint8).reshape(10, 1, 2, 2)
SPLIT = Split(X, torch.arange(10) % 3)


@dataclass
class Watched:
    """A split that tells which rows were asked of it, and by which thread."""

    asked: list[tuple[list[int], str]] = field(default_factory=list)
    read: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return 10

    def rows(self, index: Tensor) -> Rows:
        self.asked.append((index.tolist(), threading.current_thread().name))
        self.read.set()
        return SPLIT.rows(index)


def test_rows_are_those_of_the_order() -> None:
    loader, order = Loader(SPLIT, Order(3, 10, 4), 9), Order(3, 10, 4)
    for step in [0, 1, 2, 7, 3, 4, 4, 8]:  # in turn, and not
        rows = loader.rows(step)
        index = order.batch(step)
        assert torch.equal(rows.x, X[index])
        assert torch.equal(rows.y, index % 3)


def test_the_next_rows_are_fetched_by_another_thread_once() -> None:
    source, order = Watched(), Order(0, 10, 4)
    loader = Loader(source, order, 3)
    loader.rows(0)
    assert source.asked[0] == (order.batch(0).tolist(), threading.current_thread().name)
    source.read.clear()
    assert len(source.asked) == 2 or source.read.wait(30)
    for step in (1, 2):
        loader.rows(step)
    loader._thread.shutdown(wait=True)  # nothing more is under way
    assert [index for index, _ in source.asked] == [order.batch(i).tolist() for i in range(3)]
    assert {name for _, name in source.asked[1:]} == {"loader_0"}


def test_a_fault_in_reading_ahead_is_told_where_it_is_wanted() -> None:
    class Torn(Watched):
        def rows(self, index: Tensor) -> Rows:
            if self.asked:
                raise OSError("the disk is gone")
            return super().rows(index)

    loader = Loader(Torn(), Order(0, 10, 4), 3)
    loader.rows(0)
    with pytest.raises(OSError, match="the disk is gone"):
        loader.rows(1)


@pytest.mark.parametrize("std", [False, True])
def test_what_is_measured_is_the_same_in_memory_and_on_disk(tmp_path, std: bool) -> None:
    x = X.float() if std else X
    split = Split(x, SPLIT.y, x / 7 if std else None)
    for other in (cut(split), on_disk(split, str(tmp_path / str(std)))):
        assert other.sha256 == split.sha256
    assert measure  # its numbers: tests/cli/test_bench_data.py
