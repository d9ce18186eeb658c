"""Errors that are the user's to mend, told in one line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

MANY = 20  # choices: more than anybody reads


class UserError(ValueError):
    """Bad input. The message is one line: what was wrong, the value, the valid choices.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, value: object, choices: Iterable[str]) -> UserError:
    """A ``UserError`` for a ``value`` that is not among ``choices``, with the nearest one named."""
    options = sorted(choices)
    near = nearest(value, options)
    return UserError(f"unknown {kind} {value!r}{near}{listed(options, near)}")


def listed(options: Sequence[str], near: str) -> str:
    """For the end of a message: " (choices: a, b)".

    How many there are, where there is a ``near`` one that a long list would only hide.
    """
    if near and len(options) > MANY:
        return f" ({len(options)} choices)"
    return f" (choices: {', '.join(options) or 'none'})"


def nearest(value: object, choices: Iterable[str]) -> str:
    """For the middle of a message: "; did you mean 'this'?", or nothing."""
    near = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``; for the ``__post_init__`` of settings."""
    if value not in (options := tuple(choices)):
        raise unknown(name, value, options)


def check_range(
    name: str,
    value: float,
    low: float,
    high: float = float("inf"),
    *,
    open_low: bool = False,
) -> None:
    """Raise unless ``value`` is finite and within (``low < value`` where ``open_low``)."""
    inside = (value > low or (value == low and not open_low)) and value <= high
    if inside and math.isfinite(value):
        return
    above = "finite and " if math.isinf(value) else ""
    above += f"greater than {low:g}" if open_low else f"at least {low:g}"
    below = "" if high == float("inf") else f" and at most {high:g}"
    raise UserError(f"{name} must be {above}{below}, got {value!r}")
