"""Settings of a launcher, as a sweep's file and the command line write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from fewstep.errors import UserError, check_range, unknown

T = TypeVar("T")
ASKED = {
    "tuple[int": "a list of whole numbers",
    "tuple[str": "a list of strings",
    "Mapping": "a mapping",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a word",
}


def parse(kind: type[T], launcher: str, values: Mapping[str, Any]) -> T:
    """``values`` as a ``kind``, a dataclass of the settings of ``launcher``.

    Raises:
        UserError: an unknown setting, or a value of the wrong kind.
    """
    known = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise unknown(f"setting of {launcher}", str(name), known)
        made[name] = _typed(f"{launcher}.{name}", value, known[name])
    return kind(**made)


def _typed(name: str, value: Any, kind: str) -> Any:
    """``value`` as the annotation ``kind`` has it: nothing is guessed, but 4.0 is 4."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple"):
        inner = int if kind.startswith("tuple[int") else str
        if isinstance(value, str) and inner is str:
            value = value.splitlines()
        if isinstance(value, list | tuple) and all(type(v) is inner for v in value):
            return tuple(value)
    elif kind.startswith("Mapping"):
        if isinstance(value, Mapping):
            return dict(value)
    elif kind.startswith("bool"):
        if isinstance(value, bool):
            return value
    elif kind.startswith("int"):
        if number and value == int(value):
            return int(value)
    elif kind.startswith("float"):
        if number:
            return float(value)
    elif isinstance(value, str) or number:  # an account may be called 12
        return str(value)
    asked = next(words for start, words in ASKED.items() if kind.startswith(start))
    raise UserError(f"{name} takes {asked}, got {value!r}")


@dataclass(frozen=True)
class LocalSettings:
    """The ``local:`` field of a sweep; ``workers``: at a time, by default as many as fit."""

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_range("local.workers", self.workers, 1)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> LocalSettings:
        """From a sweep's ``local:`` field.

        Raises:
            UserError: an unknown setting, or a value of the wrong kind.
        """
        return parse(cls, "local", values)
