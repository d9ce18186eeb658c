"""The hash of the code behind a plugin: its own file, and whatever of its package it imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fewstep.experiments.store import source_hash as source

MINE = """
from dataclasses import dataclass
import json
from . import scale
from .tools.deep import SHIFT

@dataclass(frozen=True)
class Mine:
    def late(self):
        from thirdparty_plugin import lazy
        return lazy.X
"""
FILES = {
    "__init__.py": "",
    "metric.py": MINE,
    "scale.py": "SCALE = 2.0\n",
    "tools/__init__.py": "",
    "tools/deep.py": "SHIFT = 1.0\n",
    "lazy.py": "X = 1\n",
    "unrelated.py": "Y = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``thirdparty_plugin``, and modules without a package beside it."""
    folder = tmp_path / "thirdparty_plugin"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "loose.py").write_text("from loose_tools import Z\nclass Loose: pass\n")
    (tmp_path / "loose_tools.py").write_text("Z = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source._hash.cache_clear()
    yield folder
    for name in [n for n in sys.modules if n.startswith(("thirdparty_plugin", "loose"))]:
        del sys.modules[name]


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


def hash_of(thing: object) -> str:
    source._hash.cache_clear()
    found = source.third_party_hash(thing)
    assert found == source.source_hash(thing)
    assert found is not None
    return found


@pytest.mark.parametrize("file", [name for name in FILES if name != "unrelated.py"])
def test_it_changes_with_every_module_that_is_imported(package: Path, file: str) -> None:
    mine = imported("thirdparty_plugin.metric").Mine()
    before = hash_of(mine)
    (package / "unrelated.py").write_text("Y = 2\n")
    assert hash_of(mine) == before
    with (package / file).open("a") as opened:
        opened.write("# edited\n")
    assert (hash_of(mine) == before) == (file == "tools/__init__.py")  # is named nowhere


def test_a_package_beside_it_counts_unless_it_is_installed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``plugin_tools`` in the same repository; of installed ones there are versions."""
    (package / "scale.py").write_text(
        "from loose_package.deep import A\nfrom loose_installed import B\n"
    )
    for place, name in (
        (tmp_path, "loose_package"),
        (tmp_path / "site-packages", "loose_installed"),
    ):
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("B = 1\n")
        (place / name / "deep.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    thing = imported("thirdparty_plugin.metric").Mine()
    before = hash_of(thing)
    (tmp_path / "site-packages/loose_installed/__init__.py").write_text("B = 2\n")
    assert hash_of(thing) == before
    (tmp_path / "loose_package/deep.py").write_text("A = 2\n")
    assert hash_of(thing) != before


def test_a_package_without_init_counts_unless_it_is_installed(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = package.parent / "loose_folder"
    helpers.mkdir()
    (helpers / "scaling.py").write_text("S = 1\n")
    installed = package.parent / "site-packages/loose_other"
    installed.mkdir(parents=True)
    (installed / "deep.py").write_text("D = 1\n")
    monkeypatch.syspath_prepend(str(installed.parent))
    text = "from loose_folder.scaling import S\nfrom loose_other.deep import D\nclass L: pass\n"
    (package.parent / "loose.py").write_text(text)
    loose = imported("loose").L()
    before = hash_of(loose)
    (installed / "deep.py").write_text("D = 2\n")
    assert hash_of(loose) == before
    (helpers / "scaling.py").write_text("S = 2\n")
    assert hash_of(loose) != before


def test_modules_without_a_package_are_one_by_their_folder(package: Path) -> None:
    loose = imported("loose").Loose()
    before = hash_of(loose)
    (package.parent / "loose_tools.py").write_text("Z = 2\n")
    assert hash_of(loose) != before


def test_fewsteps_own_code_is_no_third_party() -> None:
    from fewstep.experiments.metrics import METRICS
    from fewstep.objectives import OBJECTIVES

    assert source.third_party_hash(METRICS["fd"]) is None
    assert source.third_party_hash(OBJECTIVES["scm"]) is None
    assert source.source_hash(OBJECTIVES["scm"])
