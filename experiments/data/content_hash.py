"""What files hold, as a hash that is computed once for each version of them on a machine.

::

    CACHE/listings/HASH.json    HASH: of the files' paths, sizes, times and inodes
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import UserError
from fewstep.experiments.data.memmap_cache import cache_folder, in_blocks
from fewstep.experiments.progress import report_progress
from fewstep.experiments.store.json_files import CorruptFile, Json, read_json, write_json
from fewstep.files import locked

THREADS = 16  # a disk or a network file system is faster when asked for several files at a time
BLOCK = 256


class SourceFile(NamedTuple):
    """A file that a data set is made from, its ``os.stat``, and its label."""

    path: str
    stat: os.stat_result
    label: int | None = None


def content_hashes(cache: str, parts: Mapping[str, Sequence[SourceFile]]) -> dict[str, str]:
    """By name of the part, the SHA-256 over (label, SHA-256 of the bytes) of its files, in order.

    The files are read again only if one of them has another path, label, size, time of the last
    change (of its content or its inode) or inode. Raises ``UserError`` for a file that cannot be
    read.
    """
    memo = cache_folder(cache) / "listings" / f"{_listing(parts)}.json"
    if known := _read(memo):
        return known
    with ExitStack() as stack:
        with suppress(OSError):  # a cache that cannot be written is no reason to read nothing
            memo.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(memo.with_suffix(".lock")))
        if known := _read(memo):
            return known
        computed = _computed(parts)
        with suppress(OSError):
            write_json(memo, computed)
    return computed


def known_sha256(file: Path) -> str:
    """SHA-256 of a file, computed once for each version of it in a process."""
    stat = file.stat()
    return _known_sha256(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache
def _known_sha256(path: str, *version: int) -> str:
    return file_sha256(path)


def _listing(parts: Mapping[str, Sequence[SourceFile]]) -> str:
    digest = hashlib.sha256()
    for name, files in parts.items():
        digest.update(json.dumps([name, len(files)]).encode())
        for path, stat, label in files:
            times = [stat.st_mtime_ns, stat.st_ctime_ns]
            entry = [os.path.abspath(path), label, stat.st_size, *times, stat.st_ino]
            digest.update(json.dumps(entry).encode())
    return digest.hexdigest()[:32]


def _read(memo: os.PathLike[str]) -> Json | None:
    with suppress(OSError, CorruptFile):  # made again
        return read_json(str(memo))
    return None


def _computed(parts: Mapping[str, Sequence[SourceFile]]) -> dict[str, str]:
    files = [file for part in parts.values() for file in part]
    blocks = report_progress("checksums", _sha256(files), len(files), len)
    every = iter([sha256 for block in blocks for sha256 in block])
    hashes = {}
    for name, part in parts.items():
        digest = hashlib.sha256()
        for file, sha256 in zip(part, every, strict=False):  # the rest is of the next part
            digest.update(json.dumps([file.label, sha256]).encode())
        hashes[name] = digest.hexdigest()
    return hashes


def _sha256(files: Sequence[SourceFile]) -> Iterator[list[str]]:
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in in_blocks(len(files), BLOCK):
            yield list(pool.map(file_sha256, [files[i].path for i in rows]))


def file_sha256(path: str) -> str:
    """SHA-256 of the bytes in ``path``; ``UserError`` where they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
