"""Objectives of third parties, for runs that last as long as a test needs, or fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# a run that lasts, leaves the processors to others, and all but stands still where it must
SLOW = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from fewstep.objectives import FlowMatching

@dataclass(frozen=True)
class Slow(FlowMatching):
    def loss(self, nets, batch, progress, g):
        time.sleep(float(os.environ.get("NAP", 0)))
        held = Path(os.environ.get("HELD", ""), f"steps-{progress.total}")
        if progress.step >= 100 and held.exists():
            time.sleep(2)
        return super().loss(nets, batch, progress, g)
"""
FLAKY = """
from dataclasses import dataclass
from fewstep.objectives import FlowMatching

@dataclass(frozen=True)
class Flaky(FlowMatching):
    def loss(self, nets, batch, progress, g):
        if progress.step == 3:
            {fault}
        return super().loss(nets, batch, progress, g)
"""


def third_party(folder: Path, name: str, code: str) -> None:
    """An installed package with an objective ``name``, the last class of ``code``."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_mod.py").write_text(code)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    last = code.rsplit("class ", 1)[1].split("(")[0]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[fewstep.objectives]\n{name} = {name}_mod:{last}\n")


@contextmanager
def held(folder: Path, *steps: int) -> Iterator[None]:
    """Meanwhile slow runs of so many steps take 2 s for each beyond the hundredth.

    ``folder`` is what their environment calls HELD.
    """
    holds = [folder / f"steps-{number}" for number in steps]
    for hold in holds:
        hold.touch()
    try:
        yield
    finally:
        for hold in holds:
            hold.unlink(missing_ok=True)
