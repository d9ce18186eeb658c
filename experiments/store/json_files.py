"""JSON files of runs and sweeps: written atomically, and named in the error when damaged."""

import json
import os
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.files import patiently, replacing

Json = dict[str, Any]


WRITTEN_AGAIN = "; remove that file, and `fewstep sweep` writes it again"


class CorruptFile(UserError):
    """A file of a run or a sweep that is not what was written: a disk's fault, or an editor's.

    It was written atomically: no kill makes it so.
    """


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically, in a folder that is made where it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, value)


def replace_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically (temporary name, fsync, rename)."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=True) + "\n"
    patiently(lambda: _replace(path, text))


def _replace(path: Path, text: str) -> None:
    with replacing(path) as other, other.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path | str) -> Json | None:
    """The JSON object in ``path``, None without the file; ``CorruptFile`` for anything else."""
    try:
        content = patiently(lambda: _content(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(content.decode("utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise CorruptFile(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _content(path: Path | str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # half the time of read_text, 100,000 times
        return file.readall()


def read_record(path: Path | str) -> Json | None:
    """As ``read_json``, of what a launch makes again: the error says how to go on."""
    try:
        return read_json(path)
    except CorruptFile as error:
        anew = ", and the run anew unless it is done" if str(path).endswith("spec.json") else ""
        raise CorruptFile(f"{error}{WRITTEN_AGAIN}{anew}") from None


def read_lines(path: Path) -> list[Json]:
    """The JSON objects in the lines of ``path``; what a kill has torn is passed over."""
    try:
        text = patiently(lambda: path.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
