"""Consoles, tables, and the progress of long work: a bar on a terminal, lines in a log."""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0
QUIET_SECONDS = 2.0

PIPE_COLUMNS = 200  # a pipe or a log has no width: tables are not folded to 80 columns there

_has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
_plain: Any = {"soft_wrap": True, "highlight": False, "markup": False}
out = Console(**_plain, width=None if _has_width else PIPE_COLUMNS)
err = Console(**_plain, stderr=True)


def duration(seconds: float) -> str:
    """As in ``1:02:03`` or ``4:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_lines(title: str, lines: Iterable[Any]) -> None:
    """Print a bold title, and each of the lines indented."""
    out.print(title, style="bold")
    for line in lines:
        out.print(f"  {line}")


def new_table(
    rows: Iterable[Mapping[str, Any]],
    right: Collection[str] = (),
    overflow: Any = "ellipsis",
    **options: Any,
) -> Table:
    """A table without lines; ``rows``: text by column. Those in ``right`` are right-aligned."""
    rows = list(rows)
    table = Table(box=None, header_style="bold", pad_edge=False, **options)
    for column in rows[0] if rows else ():
        justify: Any = "right" if column in right else "left"
        table.add_column(Text(column), justify=justify, overflow=overflow)
    for row in rows:
        table.add_row(*row.values())
    return table


def progress_bar(middle: str) -> Progress:
    """A bar; its tasks have the fields ``middle`` and ``text``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.fields[{middle}]}}"),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=out,
    )


class Meter:
    """Progress of one piece of work: bar, speed, time left."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.units = {"evaluate": "NFE", "pairs": "blocks"}
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.printed = self.started = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, rate: float | None = None) -> None:
        """``done`` of ``total`` in this phase, at ``rate`` units a second; default: the mean."""
        if rate is None:
            rate = done / max(time.monotonic() - self.started, 1e-9)
        left = duration((total - done) / rate) if rate else "?"
        speed = f"{rate:.1f}" if rate < 1000 else f"{rate:,.0f}"
        text = f"{speed} {self.units.get(phase, self.unit)}/s, {left} left"
        count = f"{done}/{total}" if phase != "evaluate" else f"{done / total:.0%}"  # of millions
        if self.bar is not None:
            if phase not in self.tasks:
                self.tasks[phase] = self.bar.add_task(
                    f"{self.label} {phase}", text=text, count=count
                )
            self.bar.update(self.tasks[phase], completed=done, total=total, text=text, count=count)
        elif time.monotonic() - self.printed >= LINE_SECONDS or done == total:
            self.printed = time.monotonic()
            out.print(f"{self.label} {phase} {count}, {text}")


@contextmanager
def meter(label: str, unit: str = "steps") -> Iterator[Meter]:
    """A ``Meter`` that draws a bar on a terminal and prints lines elsewhere."""
    progress = Meter(label, unit)
    if not out.is_terminal:
        yield progress
        return
    with progress_bar("count") as progress.bar:
        yield progress


def data_meter() -> Callable[[str, int, int, float], None]:
    """A ``Meter`` for data sets that are being made, shown if that takes a while."""
    stack, meters, started = ExitStack(), dict[str, Meter](), [0.0]

    def on_progress(phase: str, done: int, total: int, rate: float) -> None:
        if done < total and not started[0]:
            started[0] = time.monotonic()
        if not meters and started[0] and time.monotonic() - started[0] > QUIET_SECONDS:
            meters["data"] = stack.enter_context(meter("data", "images"))
        if meters:
            meters["data"](phase, done, total, rate)
        if done >= total:
            started[0] = 0.0
            meters.clear()
            stack.close()

    return on_progress
