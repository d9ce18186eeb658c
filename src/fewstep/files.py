"""Where files are, and atomic writes: a reader sees the old content or the whole new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_base: ContextVar[Path | None] = ContextVar("base", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """Meanwhile relative paths of settings are below ``folder``: where their run was made."""
    token = _base.set(folder)
    try:
        yield
    finally:
        _base.reset(token)


def resolved(path: str | Path) -> Path:
    """A path of a setting, absolute, ~ expanded; relative to where its run was made, else here."""
    return (_base.get() or Path.cwd()) / Path(path).expanduser()


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


def write_file(path: Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path`` atomically and return ``path``."""
    with replacing(path) as other:
        other.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
