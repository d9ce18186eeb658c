"""Pickles of plain values and numpy arrays, read without running anything else that is in them.

A pickle may name any function and call it. Here only what numpy's arrays need may be named.
"""

import io
import pickle
from typing import Any

import numpy as np


class NotPlain(Exception):
    """A damaged pickle, or one that holds more than plain values."""


def _dtype(name: str | bytes, *_: Any) -> np.dtype[Any]:
    # of numbers, and a copy: a pickle sets its state, which could break numpy's own or a structure
    dtype: np.dtype[Any] = np.dtype(name.decode() if isinstance(name, bytes) else name, copy=True)
    if dtype.kind not in "biuf":
        raise NotPlain(f"an array of {dtype}")
    return dtype


_EMPTY = np.empty(0, np.uint8)
_MAKERS: tuple[Any, ...] = (
    _EMPTY.__reduce_ex__(2)[0], _EMPTY.__reduce_ex__(5)[0], np.int64(0).__reduce__()[0],
)  # fmt: skip
NUMPY = {maker.__name__: maker for maker in (*_MAKERS, np.ndarray)} | {"dtype": _dtype}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding="latin1": str(text).encode("latin1")
        if not module.startswith("numpy") or name not in NUMPY:
            raise NotPlain(f"it asks for {module}.{name}")
        return NUMPY[name]


def load_plain(raw: bytes) -> Any:
    """The value in a pickle: dicts, lists, numbers, strings, and numpy's arrays.

    What Python 2 called a string comes as bytes. Raises ``NotPlain`` for anything else.
    """
    try:
        return _Plain(io.BytesIO(raw), encoding="bytes").load()
    except NotPlain:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise NotPlain(f"{type(error).__name__}: {error}") from None
