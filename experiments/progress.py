"""Progress of preparing a data set, reported to one listener (the command line)."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[str, int, int, float], None]
"""(what is done, done, of how many, a second)"""

_listeners: list[OnProgress] = []


def listen(listener: OnProgress) -> None:
    """Report to ``listener`` from now on; it replaces the one before."""
    _listeners[:] = [listener]


def report_progress(
    phase: str, blocks: Iterable[T], total: int, size: Callable[[T], int]
) -> Iterator[T]:
    """``blocks`` as they are, each reported when the next one is asked for; ``total`` sizes."""
    begun, done = time.perf_counter(), 0
    for block in blocks:
        yield block
        done += size(block)
        for listener in _listeners:
            listener(phase, done, total, done / (time.perf_counter() - begun))
