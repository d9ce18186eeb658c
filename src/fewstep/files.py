"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside ``file`` to write to, which becomes ``file`` at the end of the context.

    Whoever reads ``file`` meanwhile sees what was there before. After an error nothing is left; a
    process that is killed may leave the other file, whose name begins with a dot.
    """
    other = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        yield other
        os.replace(other, file)
    except BaseException:
        other.unlink(missing_ok=True)
        raise
