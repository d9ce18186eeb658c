"""Which images of a folder are for training, which are held out, and of which class each is."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import UserError, unknown
from fewstep.experiments.data.folder_scan import IMAGES, FolderScan, ImageFile, Parts, entries, scan

AUTO = ("auto",)
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "holdout",
        "held_out")  # fmt: skip


class Labelled(NamedTuple):
    """An image and the name of its class."""

    file: ImageFile
    label: str | None


class Layout(NamedTuple):
    """The images of each split, sorted by class, folder and name; ``test`` is None without one.

    ``where``: the folder of the training images. ``notes``: one line for each thing skipped.
    """

    where: Path
    train: list[Labelled]
    test: list[Labelled] | None
    notes: tuple[str, ...]


def read_layout(base: Path, folder: str, splits: Sequence[str], labels: bool) -> Layout:
    """The images below ``base``, which the settings call ``folder``.

    Args:
        splits: ("auto",) recognises usual names of splits; () takes sub-folders as classes;
            (TRAIN, TEST) or (TRAIN,) are the folders of the splits.
        labels: whether sub-folders are classes; else they are only folders.

    Raises ``UserError`` for a layout that can be read in two ways, and for unusable files.
    """
    if splits and tuple(splits) != AUTO:
        parts = _named(base, splits)
        scans = [_not_named(base, splits), *parts]
    else:
        found = scan(base)
        names = _recognised(found, labels) if splits else []
        parts, scans = [found.inside(name) for name in names] or [found], [found]
        if splits:
            _refuse_nested(parts, folder, labels)
        if names:
            _skip_beside(found, names)
    images = [_labelled(part, labels) for part in parts]
    _refuse_shared_folders(images)
    notes = tuple(note for each in scans for note in each.notes()) + _shared_files(images)
    notes += _alike(parts[0]) if labels and splits else ()
    return Layout(parts[0].root, images[0], images[1] if len(images) > 1 else None, notes)


def split_kind(name: str, *, loosely: bool = False) -> str | None:
    """ "train" or "test" for a usual name of such a split, in any case.

    ``loosely``: for a name with such a word in it, as train2017, testA, my_val, imagesTr, trainset
    or trn.
    """
    if (plain := re.sub(r"[-\s]", "_", name).lower()) in TRAIN + TEST:
        return "train" if plain in TRAIN else "test"
    if loosely and (kinds := [kind for word in _words(name) if (kind := _word_kind(word))]):
        return kinds[0]
    if loosely and (short := re.match(r"(tr(ain|n)?|te(st)?|tst|e?val)(set|data)?$", name.lower())):
        return "train" if short[0].startswith("tr") else "test"
    return None


def _words(name: str) -> list[str]:
    return re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)


def _word_kind(word: str) -> str | None:
    return {"Tr": "train", "Ts": "test"}.get(word, split_kind(word))


def _has_pair(folders: Sequence[str]) -> bool:
    """Whether two names differ in such a word only, as train_images and test_images do."""
    rest: dict[str, set[str]] = {"train": set(), "test": set()}
    for name in folders:
        for word in _words(name):
            if kind := _word_kind(word):
                rest[kind].add(name.replace(word, "", 1))
    return bool(rest["train"] & rest["test"])


def _recognised(found: FolderScan, labels: bool) -> list[str]:
    """The names of the folders [TRAIN, TEST] or [TRAIN], [] for none; only those with images."""
    folders = sorted({image.parts[0] for image in found.images if len(image.parts) > 1})
    loose = [image.parts[0] for image in found.images if len(image.parts) == 1]
    kinds = [split_kind(name) for name in folders]
    if not any(kinds):
        loosely = {split_kind(name, loosely=True) for name in folders}
        if loose or not (loosely == {"train", "test"} or _has_pair(folders)):
            return []
    elif kinds.count("train") == 1 and len(kinds) <= 2 and None not in kinds and not loose:
        empty = [n for (n, *more) in found.folders if not more and n not in folders]
        if len(kinds) == 1 and (tests := [n for n in empty if split_kind(n) == "test"]):
            raise _no_images(found.root / tests[0])
        return sorted(folders, key=lambda name: split_kind(name) != "train")
    raise _ambiguous(found.root, folders, loose, "classes" if labels else "only folders")


def _ambiguous(root: Path, folders: list[str], loose: list[str], else_: str) -> UserError:
    kinds = {name: split_kind(name, loosely=True) for name in folders}
    train, test = ([n for n, kind in kinds.items() if kind == part] for part in ("train", "test"))
    others = [f"{name}/" for name, kind in kinds.items() if kind is None] + loose
    beside = f" beside {_listed(others)}" if others else ""
    choices = [f"[{a},{b}]" for a in train for b in test] or [f"[{a}]" for a in train]
    if choices:
        shown = f"For splits set data.splits={' or '.join(choices[:3])}"
    else:
        shown = f"For splits put the training images into train/ beside {test[0]}/"
    what = f"{_listed([f'{name}/' for name in train + test])}{beside}"
    return UserError(
        f"{root} holds {what}: are they splits or {else_}? {shown}, for {else_} data.splits=[]"
    )


def _refuse_nested(parts: Sequence[FolderScan], folder: str, labels: bool) -> None:
    """Refuse splits inside of classes, and a folder that only wraps the data set."""
    train = parts[0]
    as_is = f"data.splits=[{','.join('/'.join(part.prefix) for part in parts if part.prefix)}]"
    wrapper = _common(train)
    if labels and wrapper and not any(len(i.parts) == len(wrapper) + 1 for i in train.images[:1]):
        inner = "/".join((*train.prefix, *wrapper))
        fix = f"data.splits=[{inner}]" if train.prefix else f"data.folder={folder}/{inner}"
        raise UserError(
            f"all images of {train.root} are in several folders of its one sub-folder "
            f"{'/'.join(wrapper)}/: are those the classes? If so, set {fix}; for one class "
            f"{as_is}; for no classes data.labels=false"
        )
    for part in parts:
        names = {image.parts[0] for image in part.images}
        # a class may be called train, but not all classes of a split train, test, ...
        start = 0 if part.prefix and len(names) > 1 and all(map(split_kind, names)) else 1
        for image in part.images:
            for depth, name in enumerate(image.parts[start:-1], start):
                if split_kind(name):
                    outer = "/".join((*part.prefix, *image.parts[:depth]))
                    raise UserError(
                        f"{part.root} holds {'/'.join(image.parts[: depth + 1])}/, a split inside "
                        f"of {outer}/? For splits use train/CLASS/ and test/CLASS/, or set "
                        f"data.folder={folder}/{outer}; to take all images of a sub-folder, "
                        f"whatever is inside, set {as_is}"
                    )


def _alike(found: FolderScan) -> tuple[str, ...]:
    """A note where all classes hold the same folders, as folds with the classes inside do."""
    inside: dict[str, set[str]] = {}
    for image in found.images:
        inside.setdefault(image.parts[0], set()).add(image.parts[1] if len(image.parts) > 2 else "")
    first, *others = inside.values() if inside else [set[str]()]
    if len(first) < 2 or "" in first or not others or any(other != first for other in others):
        return ()
    outer, inner = _listed(list(inside)), _listed(sorted(first))
    return (f"the classes {outer} all hold the folders {inner}: if those are the classes, name the "
            f"splits with data.splits",)  # fmt: skip


def _refuse_shared_folders(splits: Sequence[Sequence[Labelled]]) -> None:
    """A folder, reached by links, is neither training and held-out data nor two classes."""
    seen: dict[str, tuple[tuple[int, str | None], str]] = {}
    for i, split in enumerate(splits):
        places = {os.path.dirname(file.path): (i, label) for file, label in split}
        for folder, place in places.items():
            first = seen.setdefault(os.path.realpath(folder), (place, folder))
            if first[0] != place:
                what = "a train and a test split" if first[0][0] != i else "two classes"
                raise UserError(f"{folder} and {first[1]} are one folder, and would be {what}")


def _shared_files(splits: Sequence[Sequence[Labelled]]) -> tuple[str, ...]:
    """A note of held-out images that are files of the training images, by links."""
    if len(splits) < 2:
        return ()
    train = {(file.stat.st_dev, file.stat.st_ino): file.path for file, _ in splits[0]}
    shared = [
        (file.path, its)
        for file, _ in splits[1]
        if file.stat.st_ino and (its := train.get((file.stat.st_dev, file.stat.st_ino)))
    ]
    if not shared:
        return ()
    one, other = shared[0]
    what = "image is a training image" if len(shared) == 1 else "images are training images"
    return (f"{len(shared)} held-out {what}, too ({one} is {other})",)


def _common(found: FolderScan) -> Parts:
    """The folders that all images are below; they are sorted, so the first and last tell."""
    common: list[str] = []
    if found.images:
        first, last = (found.images[i].parts[:-1] for i in (0, -1))
        for a, b in zip(first, last, strict=False):
            if a != b:
                break
            common.append(a)
    return tuple(common)


def _skip_beside(found: FolderScan, names: Sequence[str]) -> None:
    for parts in found.folders:
        if len(parts) == 1 and parts[0] not in names:
            found.skip(parts, "folder", " without images")
    for parts in found.unknown:
        if parts[0] not in names:
            found.skip(parts, "file", " beside the splits")


def _named(base: Path, splits: Sequence[str]) -> list[FolderScan]:
    """What is in the folders that the setting names."""
    folders = [base / name for name in splits]
    for name, path in zip(splits, folders, strict=True):
        if not path.is_dir():
            raise unknown(
                f"folder of data.splits in {base}",
                name,
                [e.name for e in entries(base) if e.is_dir()],
            )
    real = [os.path.realpath(path) for path in folders]
    if len(real) == 2 and os.path.commonpath(real) in real:
        raise UserError(f"data.splits: {splits[0]} and {splits[1]} of {base} have common images")
    return [scan(path, Path(name).parts) for name, path in zip(splits, folders, strict=True)]


def _not_named(base: Path, splits: Sequence[str]) -> FolderScan:
    beside, used = FolderScan(base), {Path(name).parts[0] for name in splits}
    for entry in entries(base):
        if entry.name not in used:
            beside.skip((entry.name,), "item", " that data.splits does not name")
    return beside


def _labelled(found: FolderScan, labels: bool) -> list[Labelled]:
    """The images with their classes; ``UserError`` for a mixture, or other files among them."""
    if found.unknown:
        path = found.root.joinpath(*found.unknown[0])
        raise UserError(f"{path} is not an image (choices: {', '.join(IMAGES)})")
    if not found.images:
        raise _no_images(found.root)
    loose = [image.parts[0] for image in found.images if len(image.parts) == 1]
    classes = {image.parts[0] for image in found.images if len(image.parts) > 1}
    if not labels or not classes:
        return [Labelled(image, None) for image in found.images]
    if loose:
        raise UserError(
            f"{found.root} holds images ({loose[0]}, ...) and sub-folders "
            f"({min(classes)}, ...): sort the images into classes, or set data.labels=false"
        )
    for name, *more in found.folders:
        if not more and name not in classes:
            raise _no_images(found.root / name)
    return [Labelled(image, image.parts[0]) for image in found.images]


def _no_images(folder: Path) -> UserError:
    return UserError(f"{folder} holds no images (choices: {', '.join(IMAGES)})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
