"""What ``fewstep bench`` measures, besides training steps and loading (``experiments.cost``)."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """The result of ``work``, and its seconds: of wall-clock time, and of the CPU (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu
