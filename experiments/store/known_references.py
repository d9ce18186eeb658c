"""Reference files of other projects: what they hold, and which file of the user's is which.

fewstep has none of them and knows none of their hashes. ``fewstep reference --known NAME=FILE``
compares a file with the description and notes its sha256 in ``known_references.json`` in the run
root; from then on a report knows what runs were compared with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import UserError, check_choice
from fewstep.experiments.store.json_files import Json, read_json, write_json

FILE = "known_references.json"
TRAIN = "train"
"""Statistics of all training images, where these come in their own size (CIFAR-10)."""

POOL, SPATIAL = 2048, 2023  # dimensions of Inception's pool_3, and of 7 channels of mixed_6
_STATISTICS: Mapping[str, tuple[int, ...]] = {"mu": (POOL,), "sigma": (POOL, POOL)}
_ADM: Mapping[str, tuple[int, ...]] = {
    **_STATISTICS, "mu_s": (SPATIAL,), "sigma_s": (SPATIAL, SPATIAL)
}  # fmt: skip


class KnownReference(NamedTuple):
    """A reference file that a project offers.

    Attributes:
        file: its name there. data: of which data set (``known_data.KNOWN``).
        arrays: shapes by name. source: the project, and how its images were made.
        same_as: ``TRAIN`` where anybody's statistics of the training images are the same.
    """

    file: str
    data: str
    arrays: Mapping[str, tuple[int, ...]]
    source: str
    same_as: str = ""


def _adm(size: int, file: str) -> KnownReference:
    source = "openai/guided-diffusion, evaluations: mu, sigma of the training set, 10,000 images"
    arrays = {"arr_0": (10_000, size, size, 3), **_ADM}
    return KnownReference(file, f"imagenet_{size}", arrays, source)


def _statistics(file: str, data: str, source: str, same_as: str = "") -> KnownReference:
    return KnownReference(file, data, _STATISTICS, source, same_as)


_EDM = "NVlabs/edm, fid-refs: the training images"
_KVFRANS = "kvfrans/shortcut-models, data: the whole data set, another port of Inception"
REFERENCES: dict[str, KnownReference] = {
    "adm_imagenet_64": _adm(64, "VIRTUAL_imagenet64_labeled.npz"),
    "adm_imagenet_256": _adm(256, "VIRTUAL_imagenet256_labeled.npz"),
    "adm_imagenet_512": _adm(512, "VIRTUAL_imagenet512.npz"),
    "edm_cifar10": _statistics("cifar10-32x32.npz", "cifar10", _EDM, TRAIN),
    "edm_ffhq_64": _statistics("ffhq-64x64.npz", "ffhq_64", _EDM),
    "edm_imagenet_64": _statistics("imagenet-64x64.npz", "imagenet_64", _EDM + " (center-crop)"),
    "edm_imagenet_64_baseline": _statistics(
        "imagenet-64x64-baseline.npz", "imagenet_64", _EDM + " of ADM's model"),
    "kvfrans_celeba_hq_256": _statistics("celeba256_fidstats_ours.npz", "celeba_hq_256", _KVFRANS),
    "kvfrans_imagenet_256": _statistics("imagenet256_fidstats_ours.npz", "imagenet_256", _KVFRANS),
}  # fmt: skip


def canonical(reference: str) -> str:
    """One name for references that are the same: ``edm_cifar10`` is ``train``."""
    known = REFERENCES.get(reference)
    return known.same_as or reference if known else reference


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


def record(root: Path, name: str, file: Path, shapes: Mapping[str, object], sha256: str) -> None:
    """Note that ``file``, whose arrays have these ``shapes``, is the known reference ``name``.

    Raises ``UserError``: no such reference, other contents, or a contradiction to the record.
    """
    check_choice("known reference", name, REFERENCES)
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
