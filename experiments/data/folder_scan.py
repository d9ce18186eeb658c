"""The files below a folder of images: each is used, skipped for a stated reason, or refused."""

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fewstep.errors import UserError, counted
from fewstep.experiments.data.decode import open_image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
BESIDE = (".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".html", ".pdf", ".db")
SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")

Parts = tuple[str, ...]
"""A path below the scanned folder, name by name."""
FolderId = tuple[int, int]
"""Device and inode."""


class ImageFile(NamedTuple):
    """An image, where it is below the scanned folder, and its ``os.stat``."""

    path: str
    parts: Parts
    stat: os.stat_result


@dataclass
class FolderScan:
    """What is below ``root``, links followed.

    Attributes:
        prefix: where ``root`` is below the data set's folder; notes begin with it.
        images: sorted by folder, then by name. folders: sub-folders at any depth.
        unknown: files that are no images and of no type known to lie beside images.
        skipped: paths of what was left out, by a noun and what follows it in a note.
    """

    root: Path
    prefix: Parts = ()
    images: list[ImageFile] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    unknown: list[Parts] = field(default_factory=list)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def skip(self, parts: Parts, noun: str, rest: str = "") -> None:
        """Leave out what is at ``parts``; a note says "skipped 2 NOUNs REST (PATH, ...)"."""
        self.skipped.setdefault((noun, rest), []).append("/".join((*self.prefix, *parts)))

    def notes(self) -> tuple[str, ...]:
        """One line for each reason to skip something."""
        return tuple(
            f"skipped {counted(len(paths), noun)}{rest} ({paths[0]}{', ...' * (len(paths) > 1)})"
            for (noun, rest), paths in self.skipped.items()
        )

    def inside(self, name: str) -> "FolderScan":
        """The part of it in the sub-folder ``name``; notes are common to both."""

        def below(all_parts: list[Parts]) -> list[Parts]:
            return [parts[1:] for parts in all_parts if parts[0] == name and len(parts) > 1]

        images = [i._replace(parts=i.parts[1:]) for i in self.images if i.parts[0] == name]
        root, prefix, unknown = self.root / name, (*self.prefix, name), below(self.unknown)
        return FolderScan(root, prefix, images, below(self.folders), unknown, self.skipped)


def scan(root: Path, prefix: Parts = ()) -> FolderScan:
    """All files below ``root``; ``UserError`` for what can be neither used nor skipped.

    Refused are folders that cannot be read, links that lead nowhere, and devices or pipes.
    """
    found, nowhere = FolderScan(root, prefix), list[str]()
    real = Path(os.path.realpath(root))
    above = frozenset(_id(os.stat(folder)) for folder in (real, *real.parents))
    _scan(found, nowhere, str(root), (), above)
    if nowhere:
        raise UserError(
            f"{counted(len(nowhere), 'broken link')} below {root} ({nowhere[0]} -> "
            f"{os.readlink(nowhere[0])}): fetch the files (git annex get, dvc pull) or remove links"
        )
    found.images.sort(key=lambda image: (image.parts[:-1], image.parts[-1]))
    return found


def _scan(
    found: FolderScan, nowhere: list[str], folder: str, parts: Parts, above: frozenset[FolderId]
) -> None:
    for entry in entries(folder):
        inside = (*parts, entry.name)
        if entry.name.startswith(".") or entry.name in SYSTEM:
            kind = "hidden" if entry.name.startswith(".") else "system"
            of = "folder" if entry.is_dir(follow_symlinks=False) else "file"
            found.skip(inside, f"{kind} {of}")
        elif (status := _stat(entry)) is None:
            if Path(entry.name).suffix.lower() in BESIDE:
                found.skip(inside, "text or data file")
            else:
                nowhere.append(entry.path)
        elif stat.S_ISDIR(status.st_mode):
            if _id(status) in above:  # to follow it would never end
                found.skip(inside, "link", " to a folder above")
            else:
                found.folders.append(inside)
                _scan(found, nowhere, entry.path, inside, above | {_id(status)})
        elif stat.S_ISREG(status.st_mode):
            _file(found, entry.path, inside, status)
        else:
            raise UserError(f"{entry.path} is no regular file (but a pipe, socket or device)")


def _file(found: FolderScan, path: str, parts: Parts, status: os.stat_result) -> None:
    suffix = Path(parts[-1]).suffix.lower()
    if suffix in BESIDE:
        found.skip(parts, "text or data file")
    elif suffix in IMAGES or _recognised(path, suffix):
        found.images.append(ImageFile(path, parts, status))
    elif suffix:
        found.unknown.append(parts)
    else:
        found.skip(parts, "file", " without suffix or image header")


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in ``folder``, sorted by name; ``UserError`` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error})") from None


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of what ``entry`` is or leads to; None for a link that leads nowhere."""
    try:
        return os.stat(entry.path)
    except OSError as error:
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise UserError(f"{entry.path} cannot be read ({error.strerror or error})") from None


def _id(status: os.stat_result) -> FolderId:
    return status.st_dev, status.st_ino


def _recognised(path: str, suffix: str) -> bool:
    """Whether the header is an image's.

    A DIB begins as many a file does; the raw images of cameras are TIFF, with a preview first.
    """
    try:
        with open_image(path) as image:
            return image.format != "DIB" and not (suffix and image.format == "TIFF")
    except Image.DecompressionBombError:
        return True  # and refused by that name when it is decoded
    except Exception as error:  # of any type: these may be no image's bytes at all
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        return False
