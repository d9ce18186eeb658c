"""Lists of all modules, and of all public names, with the first lines of their docstrings."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("src/fewstep/cli", "reports", "analysis", "sweeps", "experiments"),
    *("objectives", "backbones", "src/fewstep"),
)


def listing() -> str:
    """A table per package, highest layer first: module, what it is."""
    return "\n\n".join(_package(ROOT / name) for name in PACKAGES)


def _package(folder: Path) -> str:
    rows = ["| module | |", "| --- | --- |"]
    # src/fewstep holds links to the other packages, and cli has its own table
    pattern = "*.py" if folder.name == "fewstep" else "**/*.py"
    for path in sorted(folder.glob(pattern), key=_order(folder)):
        summary = first_line(path)
        name = path.relative_to(folder).as_posix()
        if summary:
            rows.append(f"| `{name}` | {summary} |")
    title = folder.relative_to(ROOT).as_posix()
    return f"## `{title}/`\n\n" + "\n".join(rows)


def _order(folder: Path):  # type: ignore[no-untyped-def]
    """Modules of the package itself before those of its sub-packages; ``__init__`` first."""

    def key(path: Path) -> tuple[str, bool, str]:
        where = path.parent.relative_to(folder).as_posix()
        return ("" if where == "." else where, path.name != "__init__.py", path.name)

    return key


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without the full stop; empty if there is none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = text.split("\n\n")[0].replace("\n", " ")
    return line.replace("``", "`").replace("|", "\\|").rstrip(".")


def public_names() -> str:
    """A table of what ``import fewstep`` offers."""
    import fewstep

    rows = ["| name | |", "| --- | --- |"]
    for name in sorted(set(fewstep.__all__) - {"__version__"}, key=str.lower):
        one: Any = getattr(fewstep, name)
        registry = not (inspect.isclass(one) or inspect.isroutine(one))
        said = (inspect.getdoc(type(one) if registry else one) or "").split("\n\n")[0]
        said = said.replace("\n", " ")
        if registry:  # what it holds
            said = f"The registry of {one.kind}s (`{one.group}`)."
        rows.append(f"| `{name}` | {said.replace('``', '`').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)
