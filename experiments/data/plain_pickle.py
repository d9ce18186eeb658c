"""Pickles of plain Python values and byte arrays, read without running anything that is in them.

A pickle is a program: it may name any function and call it. Here the few names that a numpy array
of bytes needs stand for classes of our own that only keep what they are given; every other name
ends the reading.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NotPlain(Exception):
    """A damaged pickle, or one that asks for more than plain values."""


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: Any, *rest: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment, which single bytes have not


class _Array:
    """Stands for numpy.ndarray, of single bytes alone."""

    value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "|u1"):
            raise NotPlain(f"an array of {getattr(dtype, 'name', dtype)!r}, expected bytes")
        if not isinstance(raw, bytes):
            raise NotPlain("an array whose content is no bytes")
        order = "F" if fortran else "C"
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*given: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands for codecs.encode, with which Python 3 writes bytes for Python 2."""
    return str(text).encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise NotPlain(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def load_plain(raw: bytes) -> Any:
    """The value in a pickle: dicts, lists, numbers, strings, and arrays of bytes as numpy's.

    What Python 2 called a string comes as bytes.

    Raises:
        NotPlain: anything else.
    """
    try:
        return _revealed(_Plain(io.BytesIO(raw), encoding="bytes").load())
    except NotPlain:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise NotPlain(f"{type(error).__name__}: {error}") from None


def _revealed(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise NotPlain("an array without content")
        return value.value
    if isinstance(value, dict):
        return {key: _revealed(inner) for key, inner in value.items()}
    return [_revealed(inner) for inner in value] if isinstance(value, list) else value
