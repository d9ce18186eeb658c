"""Settings in YAML, checked against the annotations of the dataclass that takes them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from fewstep.errors import UserError, unknown

WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
}
"""Pydantic's kinds of errors, in the words of YAML."""


def checked(
    kind: type, prefix: str, values: Any, what: str, *, others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """``values`` by name, each of the type that the dataclass ``kind`` gives it; else a UserError.

    ``prefix`` opens the name of a value in a message (``slurm.``). ``what``: how to call one of
    them (``setting of slurm``). ``others``: further choices that an unknown name could have been.
    """
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".")
        raise UserError(f"{name} must be a mapping of settings to values, got {values!r}")
    known = [f.name for f in fields(kind) if f.init]
    hints = _hints(kind)
    for name in values:
        if name not in known:
            raise unknown(what, str(name), (*known, *others))
    return {name: check_type(f"{prefix}{name}", v, hints[name]) for name, v in values.items()}


def check_type(name: str, value: Any, annotation: Any) -> Any:
    """``value`` as the annotation has it (4.0 is 4, and 12 may be a word); else a UserError."""
    from pydantic import ValidationError

    first = None
    for candidate in _spellings(value):
        try:
            return _adapter(annotation).validate_json(json.dumps(candidate, default=str))
        except ValidationError as error:
            first = first or error.errors()[0]
    assert first is not None
    index = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    words = WORDS.get(first["type"], first["msg"].removeprefix("Input should be "))
    raise UserError(f"{name}{index} must be {words}, got {first['input'] if index else value!r}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter  # takes 0.2 s

    return TypeAdapter(annotation, config=ConfigDict(strict=True))


def _spellings(value: Any) -> Iterator[Any]:
    """A value as it stands, and what else it may mean in YAML."""
    yield value
    if isinstance(value, str):
        yield value.splitlines()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if value == value // 1:
            yield int(value)
        yield str(value)
