"""The cost of reading, summarising and reporting a large sweep; making it is not measured."""

import resource
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.cli.benchmarks import timed
from fewstep.cli.benchmarks.store import OnProgress, many

STEPS = tuple(2**k for k in range(12))
RUNS = 10_000


def measure(runs: int, on_progress: OnProgress) -> tuple[int, dict[str, float]]:
    """The number of cells of ``runs`` runs, and the measurements."""
    numbers: dict[str, float] = {}
    seconds = []

    def part(name: str, work: Callable[[], Any]) -> Any:
        result, wall, numbers[f"{name} (CPU s)"] = timed(work)
        numbers[f"{name} (s)"] = wall
        seconds.append(wall)
        return result

    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as folder:
        sweep = many(Path(folder), runs, STEPS, on_progress=on_progress)
        report = part("imports", lambda: import_module("fewstep.reports.report"))
        analysis = import_module("fewstep.analysis")
        frame = part("frame", lambda: analysis.load(sweep))
        part("statistics", lambda: analysis.summarise(frame))
        out = Path(folder) / "report"
        part("report, with its own statistics", lambda: report.write_report(frame, {}, out))
    numbers["all (s)"] = sum(seconds)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    numbers["peak memory of this process (MB)"] = peak / 1e6
    return len(frame), numbers
