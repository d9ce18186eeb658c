"""Hashes of the code behind an objective, a backbone, a metric or an extractor."""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

STANDARD_LIBRARY = Path(os.__file__).parent
SHARED = ("fewstep.objectives", "fewstep.backbones")


def source_hash(thing: object) -> str:
    """12 hex digits of the hash of the code behind ``thing``.

    The file that defines its class, those of objectives and backbones that it takes names from, and
    those that it imports of its own package, or of a source tree, where it is a third party's. What
    is imported by a computed name, and data files, are not seen.
    """
    return _hash(type(thing).__module__)


def third_party_hash(thing: object) -> str | None:
    """``source_hash`` of a third party's code; None of fewstep's, which has versions."""
    return None if _is_ours(type(thing).__module__) else source_hash(thing)


def recorded_sources(
    objective: object, backbone: object, optimiser: object
) -> dict[str, str | None]:
    """What a run records of its code, by which ``sweeps.plan`` knows it for stale.

    fewstep's optimisers are tested to equal torch's to the last bit, so theirs is None.
    """
    return {
        "objective_source": source_hash(objective),
        "backbone_source": source_hash(backbone),
        "optimiser_source": third_party_hash(optimiser),
    }


def _is_ours(module: str) -> bool:
    return module == "fewstep" or module.startswith("fewstep.")


@cache  # a plan asks for thousands, and what was imported stays as it is
def _hash(defining: str) -> str:
    digest = hashlib.sha256()
    for module in sorted(_sources(defining, set())):
        file = _file(module)
        digest.update(file.read_bytes() if file else b"")
    return digest.hexdigest()[:12]


def _sources(module: str, seen: set[str]) -> set[str]:
    seen.add(module)
    for value in vars(sys.modules[module]).values() if module in sys.modules else ():
        origin = getattr(value, "__module__", None) or ""
        if origin.startswith(SHARED) and origin not in seen and origin in sys.modules:
            _sources(origin, seen)
    for imported in () if _is_ours(module) else _imports(module):
        near = _same_package(imported, module) or _is_in_source_tree(imported)
        if imported not in seen and near and _file(imported):
            _sources(imported, seen)
    return seen


def _imports(module: str) -> Iterator[str]:
    """The modules that ``module`` may import, also inside its functions, as its text says."""
    file = _file(module)
    if file is None or file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above * bool(node.level), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _same_package(one: str, other: str) -> bool:
    """Whether both are of one package, or both are modules in one folder that is no package."""
    first, second = (name.split(".")[0] for name in (one, other))
    if first == second:
        return True
    a, b = _file(first), _file(second)
    if a is None or b is None or "__init__.py" in (a.name, b.name):
        return False
    return a.parent == b.parent and a.parent.name not in ("site-packages", "dist-packages")


def _is_in_source_tree(module: str) -> bool:
    """Whether it lies in somebody's source tree, and is not installed."""
    top = None if _is_ours(module) else _place(module.split(".")[0])
    installed = ("site-packages", "dist-packages")
    return top is not None and not (
        any(name in top.parts for name in installed) or top.is_relative_to(STANDARD_LIBRARY)
    )


def _place(module: str) -> Path | None:
    """Its file, or of a package without ``__init__.py`` its folder."""
    if (file := _file(module)) is not None:
        return file
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    folders = spec.submodule_search_locations if spec is not None else None
    return next(map(Path, folders), None) if folders else None


def _file(module: str) -> Path | None:
    """The module's file; None where it has none, or is not there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None and module not in sys.modules:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file else None
