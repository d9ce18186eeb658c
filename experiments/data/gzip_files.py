"""Files that may be gzipped."""

import gzip
import zlib
from pathlib import Path

from fewstep.errors import UserError


def find_file(folder: Path, name: str) -> Path | None:
    """``name`` or ``name``.gz in ``folder``."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_unzipped(file: Path) -> bytes:
    """What ``file`` holds, unzipped if its name ends in .gz; ``UserError`` if it is damaged."""
    raw = file.read_bytes()
    try:
        return gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{file} is not a complete gzip file ({error}): {first_bytes(raw)}"
        ) from None


def first_bytes(raw: bytes) -> str:
    """What a file begins with, for an error: a page of HTML, say."""
    return f"it begins with {raw[:15]!r}"
