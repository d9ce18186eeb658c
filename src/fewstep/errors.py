"""Errors of bad input, with a one-line message, and checks that raise them."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

MANY = 20  # choices: more than anybody reads


class UserError(ValueError):
    """Bad input. The message is one line: what was wrong, the value, the valid choices.

    The command line prints it without a traceback and exits with code 2.
    """


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of a ``UserError``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def counted(number: float, noun: str) -> str:
    """``1 run``, or ``3 runs``."""
    return f"{number:.15g} {noun}{'' if number == 1 else 's'}"


def unknown(kind: str, value: object, choices: Iterable[str]) -> UserError:
    """A ``UserError`` for a ``value`` that is not among ``choices``, with the nearest one named.

    The value is put behind the noun: of kind ``setting of ray``, "unknown setting 'x' of ray".
    """
    options = sorted(choices)
    near = nearest(value, options)
    noun, *where = re.split(" (?=of |in |under )", kind, maxsplit=1)
    return UserError(
        f"unknown {' '.join([noun, repr(value), *where])}{near}{listed(options, near)}"
    )


def listed(options: Sequence[str], near: str) -> str:
    """For the end of a message: " (choices: a, b)".

    How many there are, where there is a ``near`` one that a long list would only hide.
    """
    if near and len(options) > MANY:
        return f" ({len(options)} choices)"
    return f" (choices: {', '.join(options) or 'none'})"


def nearest(value: object, choices: Iterable[str]) -> str:
    """For the middle of a message: "; did you mean 'this'?", or nothing."""
    cutoff = 0.6 if len(str(value)) > 3 else 0.5  # one of two letters may be wrong
    near = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``; for the ``__post_init__`` of settings."""
    if value not in (options := tuple(choices)):
        raise unknown(name, value, options)


def check_range(
    name: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raise unless ``value`` is finite and within (``low < value`` where ``open_low``)."""
    inside = (value > low or (value == low and not open_low)) and value <= high
    if inside and math.isfinite(value):
        return
    above = "finite and " if math.isinf(value) else ""
    above += f"greater than {low:g}" if open_low else f"at least {low:g}"
    below = "" if high == float("inf") else f" and at most {high:g}"
    raise UserError(f"{name} must be {above}{below}, got {value!r}")


def check_fields(
    group: str, obj: object, names: str, low: float, high: float = math.inf, open_low: bool = False
) -> None:
    """``check_range`` of the named fields of ``obj``, called ``group.NAME``; None passes."""
    for name in names.split():
        if (value := getattr(obj, name)) is not None:
            check_range(f"{group}.{name}", value, low, high, open_low=open_low)
