"""Reference files of other projects: which file of the user's is which.

fewstep has none of them and knows none of their hashes. ``fewstep reference --known NAME=FILE``
compares a file with its description (``public_data.REFERENCES``) and notes its sha256 in
``known_references.json`` in the run root; from then on a report knows what runs were compared with.
"""

from collections.abc import Mapping
from pathlib import Path

from fewstep.errors import UserError, check_choice
from fewstep.experiments.store.json_files import Json, read_json, write_json
from fewstep.public_data import REFERENCES

FILE = "known_references.json"


def names_by_sha256(root: Path) -> dict[str, str]:
    """The names of the user's files, by their hash; those that the run root's record knows.

    Raises ``UserError``: the record is damaged, or names something that is not known.
    """
    names = {}
    for name, entry in (read_json(root / FILE) or {}).items():
        if name not in REFERENCES or not isinstance(entry, dict) or "sha256" not in entry:
            raise UserError(f"{root / FILE}: {name!r} is not a known reference with its sha256")
        names[str(entry["sha256"])] = name
    return names


def check(name: str, file: Path, shapes: Mapping[str, object]) -> None:
    """Whether ``file``, whose arrays have these ``shapes``, can be the known reference ``name``.

    Raises ``UserError``: no such reference, or other contents.
    """
    check_choice("reference file", name, REFERENCES)
    expected = REFERENCES[name].arrays
    for array, shape in expected.items():
        if array not in shapes:
            listed = ", ".join(sorted(shapes)) or "nothing"
            raise UserError(f"{file} is not {name}: it has no array {array} (it has {listed})")
        if shapes[array] != shape:
            raise UserError(
                f"{file} is not {name}: {array} has shape {shapes[array]}, expected {shape}"
            )
    if "arr_0" in shapes and "arr_0" not in expected:
        raise UserError(f"{file} is not {name}: it has images (arr_0), {name} has statistics alone")


def record(root: Path, name: str, file: Path, sha256: str) -> None:
    """Note that ``file`` is the known reference ``name``; ``check`` comes before.

    Raises ``UserError``: a contradiction to the record.
    """
    known: Json = read_json(root / FILE) or {}
    other = known.get(name, {}).get("sha256", sha256)
    if other != sha256:
        raise UserError(
            f"{name} is known by sha256 {other[:12]}, {file} has {sha256[:12]}: of two files one "
            f"is another; remove the entry from {root / FILE} if the recorded one was"
        )
    if (twice := names_by_sha256(root).get(sha256, name)) != name:
        raise UserError(f"{file} is already known as {twice}, so it cannot be {name}")
    entry = {"sha256": sha256, "file": str(file.resolve()), "bytes": file.stat().st_size}
    write_json(root / FILE, {**known, name: entry})
