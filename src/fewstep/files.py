"""Where files are, patience with a file system, and atomic writes.

Of a file that is written here a reader sees the old content or the whole new one.
"""

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from filelock import FileLock

T = TypeVar("T")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# a network file system says these when a server restarts, or a file is replaced while it is read
AWAY = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOLCK,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EREMOTEIO, errno.ENXIO, errno.ENODEV, errno.ENETRESET, errno.ECONNRESET,
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN, errno.ECOMM, errno.EPROTO,
)  # fmt: skip
# to wait is in vain: a disk that failed is read-only or damaged, a Kerberos ticket ran out
GONE = (
    errno.EROFS, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EACCES, errno.EPERM,
    errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EKEYREJECTED, errno.ENOKEY,
    errno.EOPNOTSUPP,
)  # fmt: skip
IO_ERRORS = {"disk_full": DISK_FULL, "io_error": (*AWAY, *GONE)}  # failure classes
WAITS = (0.1, 0.3, 1.0, 3.0, 5.0)  # seconds between attempts
HOPELESS_SECONDS = 60.0  # so long after waiting in vain, nothing waits again
QUIET_SECONDS = 5.0  # of waiting for a lock, before it is said
log = logging.getLogger(__name__)

_in_vain = -HOPELESS_SECONDS  # when somebody has last waited in vain
_base: ContextVar[Path | None] = ContextVar("base", default=None)


def io_error_class(error: BaseException) -> str | None:
    """``disk_full`` or ``io_error``, if the file system failed; else None."""
    number = error.errno if isinstance(error, OSError) else None
    return next((kind for kind, numbers in IO_ERRORS.items() if number in numbers), None)


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


def below(root: str, name: str) -> Path:
    """``name`` in ``root``; an absolute path that is gone is looked for there by its last part."""
    path, moved = resolved(root) / name, resolved(root) / Path(name).name
    is_gone = Path(name).is_absolute() and not path.exists()
    return moved if is_gone and moved.exists() else path


def broken_link(path: Path) -> str:
    """What to say of a link in ``path`` that leads nowhere; empty if there is none."""
    for part in (path.absolute(), *path.absolute().parents):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {os.readlink(part)}, which does not exist"
    return ""


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


def append(path: Path, text: str) -> None:
    """Add ``text`` to ``path``: all of it, or after an error nothing."""
    rest = text.encode()
    with path.open("ab", buffering=0) as file:
        begun = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]  # a disk may be full half-way
        except OSError:
            file.truncate(begun)
            raise


def write_file(path: Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path`` atomically and return ``path``."""
    with replacing(path) as other:
        other.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def patiently(action: Callable[[], T]) -> T:
    """``action()``; after an I/O error that may pass, again, in the end 9 seconds later.

    One at a time waits in vain: others fail at once for a minute then, or thousands of files on a
    disk that is away would take hours.
    """
    global _in_vain
    for wait in WAITS:
        try:
            return action()
        except OSError as error:
            hopeless = time.monotonic() - _in_vain < HOPELESS_SECONDS
            if hopeless or error.errno not in (*AWAY, *DISK_FULL):
                raise
            time.sleep(wait)
    try:
        return action()
    except OSError:
        _in_vain = time.monotonic()
        raise


@contextmanager
def locked(file: Path, seconds: float = -1.0) -> Iterator[None]:
    """A context in which this process holds the lock ``file``, whose folder is there.

    ``filelock.Timeout`` after so many ``seconds`` of waiting for others, of which a warning tells;
    by default it waits for ever. Another ``OSError`` names the file.
    """
    lock = patiently(lambda: _acquired(file, seconds))
    try:
        yield
    finally:
        lock.release()


def _acquired(file: Path, seconds: float) -> "FileLock":
    from filelock import FileLock, Timeout  # a tenth of a second: not for every command

    lock, quiet = FileLock(file), QUIET_SECONDS if seconds < 0 else min(QUIET_SECONDS, seconds)
    try:
        try:
            lock.acquire(timeout=quiet)
        except Timeout:
            if quiet == seconds:
                raise
            log.warning("waiting for another process, which has locked %s", file)
            lock.acquire(timeout=seconds if seconds < 0 else seconds - quiet)
    except Timeout:
        raise
    except OSError as error:
        told = f"cannot be locked ({error.strerror or error})"
        raise OSError(error.errno, told, str(file)) from error
    return lock
