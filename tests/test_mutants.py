"""The mutants fit the code and cover it; ``make mutants`` shows that each is killed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent / "mutants"
ROOT = FOLDER.parents[1]


def load_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants_table", FOLDER / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TABLE = load_table()
MUTANTS = TABLE.MUTANTS


def test_each_fits_exactly_one_place() -> None:
    for m in MUTANTS:
        assert TABLE.source(ROOT, m).read_text().count(m.old) == 1, m
        assert m.old != m.new, m
        assert m.why, m


def test_there_are_many_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 40
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_every_file_of_objectives_has_some() -> None:
    files = {
        p.stem for folder in ("", "core") for p in (ROOT / "objectives" / folder).glob("*.py")
    } - {"__init__"}
    counts = {name: sum(m.file == name for m in MUTANTS) for name in files}
    assert min(counts.values()) >= 2, counts


def test_mutants_of_python_are_python() -> None:
    for m in MUTANTS:
        source = TABLE.source(ROOT, m).read_text()
        compile(source.replace(m.old, m.new), m.file, "exec")
