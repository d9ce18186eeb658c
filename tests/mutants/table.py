"""Faults put into the objectives by hand, one at a time; the suite has to find each.

Of the kind that public re-implementations have: signs, swapped times, t for t + d, levels off by
one, a sigma_d left out, noise not shared, gradients into targets, halves and labels forgotten.

They stand in the .txt files beside this one:

    @ file: why it is a fault
    - text, in objectives/ or objectives/core/, <file>.py, exactly once
    + what it becomes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """In ``<file>.py`` of ``objectives/``, ``old``, there once, becomes ``new``."""

    file: str
    why: str
    old: str
    new: str


def read(text: str) -> list[Mutant]:
    """The mutants of one file of them."""
    found = []
    for block in ("\n" + text).split("\n@ ")[1:]:
        head, *lines = block.splitlines()
        file, why = head.split(": ", 1)
        old, new = ("\n".join(x[2:] for x in lines if x.startswith(sign)) for sign in ("- ", "+ "))
        found.append(Mutant(file, why, old, new))
    return found


def source(root: Path, mutant: Mutant) -> Path:
    """The file below ``root`` that the mutant changes."""
    (file,) = (root / "objectives").rglob(f"{mutant.file}.py")
    return file


MUTANTS = [
    m for path in sorted(Path(__file__).parent.glob("*.txt")) for m in read(path.read_text())
]
