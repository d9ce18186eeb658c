"""What commands print with, and the progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LINE_SECONDS = 10.0
QUIET_SECONDS = 2.0

PIPE_COLUMNS = 200  # a pipe or a log has no width: tables are not folded to 80 columns there

_told = sys.stdout.isatty() or "COLUMNS" in os.environ
out = Console(soft_wrap=True, highlight=False, width=None if _told else PIPE_COLUMNS)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def duration(seconds: float) -> str:
    """As in ``1:02:03`` or ``4:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Meter:
    """Progress of one piece of work: bar, speed, time left."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.units = {"evaluate": "NFE", "pairs": "blocks"}
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.begun = self.told = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, rate: float) -> None:
        """``done`` of ``total`` in this phase, at ``rate`` units a second."""
        left = duration((total - done) / rate) if rate else "?"
        speed = f"{rate:.1f}" if rate < 1000 else f"{rate:,.0f}"
        text = f"{speed} {self.units.get(phase, self.unit)}/s, {left} left"
        told = f"{done}/{total}" if phase != "evaluate" else f"{done / total:.0%}"  # of millions
        if self.bar is not None:
            if phase not in self.tasks:
                self.tasks[phase] = self.bar.add_task(f"{self.label} {phase}", text=text, told=told)
            self.bar.update(self.tasks[phase], completed=done, total=total, text=text, told=told)
        elif time.monotonic() - self.told >= LINE_SECONDS or done == total:
            self.told = time.monotonic()
            out.print(f"{self.label} {phase} {told}, {text}")


@contextmanager
def meter(label: str, unit: str = "steps") -> Iterator[Meter]:
    """A ``Meter`` that draws a bar on a terminal and prints lines elsewhere."""
    made = Meter(label, unit)
    if not out.is_terminal:
        yield made
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=out,
    ) as bar:
        made.bar = bar
        yield made


def data_meter() -> Callable[[str, int, int, float], None]:
    """A ``Meter`` for data sets that are made on the way, shown if that takes a while."""
    stack, meters, begun = ExitStack(), dict[str, Meter](), [0.0]

    def on_progress(phase: str, done: int, total: int, rate: float) -> None:
        if done < total and not begun[0]:
            begun[0] = time.monotonic()
        if not meters and begun[0] and time.monotonic() - begun[0] > QUIET_SECONDS:
            meters["data"] = stack.enter_context(meter("data", "images"))
        if meters:
            meters["data"](phase, done, total, rate)
        if done >= total:
            begun[0] = 0.0
            meters.clear()
            stack.close()

    return on_progress
