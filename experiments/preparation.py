"""How far the making of a data set has come, for whoever shows it: the command line, mostly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[str, int, int, float], None]
"""(what is done, done, of how many, a second)"""

_listeners: list[OnProgress] = []


def listen(listener: OnProgress) -> None:
    """From now on, ``listener`` hears of it instead of whoever did."""
    _listeners[:] = [listener]


def told(phase: str, blocks: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
    """``blocks`` as they are, each told of when the next one is asked for; ``total`` sizes."""
    begun, done = time.perf_counter(), 0
    for block in blocks:
        yield block
        done += size(block)
        for listener in _listeners:
            listener(phase, done, total, done / (time.perf_counter() - begun))
