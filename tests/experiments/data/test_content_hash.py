"""A folder of images is known by what its files hold, not by their names and times."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import as_seen, folder, load, picture, pixels
from PIL import Image

from fewstep.errors import UserError
from fewstep.experiments import progress
from fewstep.experiments.data import content_hash, decode
from fewstep.experiments.data.content_hash import SourceFile, content_hashes


class Counts:
    """How many files were read for their hashes, and how many images were decoded."""

    def __init__(self) -> None:
        self.read = self.decoded = 0

    def since(self) -> tuple[int, int]:
        counted = self.read, self.decoded
        self.read = self.decoded = 0
        return counted


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEWSTEP_CACHE", str(folder))
    return folder


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counts, read, decoded = Counts(), content_hash.file_sha256, decode.ImageDecoder.__call__

    def counted_read(path: str) -> str:
        counts.read += 1
        return read(path)

    def counted_decoding(self: decode.ImageDecoder, image: Image.Image) -> np.ndarray:
        counts.decoded += 1
        return decoded(self, image)

    monkeypatch.setattr(content_hash, "file_sha256", counted_read)
    monkeypatch.setattr(decode.ImageDecoder, "__call__", counted_decoding)
    return counts


def bitmaps(root: Path, seeds: range) -> Path:
    """Files of one length, whatever is in them."""
    root.mkdir(exist_ok=True)
    for i, seed in enumerate(seeds):
        picture(seed).save(root / f"{i}.bmp")
        os.utime(root / f"{i}.bmp", ns=(10**18, 10**18))
    return root


def test_files_replaced_under_the_same_name_size_and_time_are_noticed(tmp_path: Path) -> None:
    """As by `cp -p` or an archive that is unpacked with fixed times."""
    root = bitmaps(tmp_path / "x", range(10))
    before = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(root.iterdir())]
    assert as_seen(load(root).train.x) <= {pixels(seed) for seed in range(10)}
    bitmaps(root, range(20, 30))
    after = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(root.iterdir())]
    assert after == before
    assert as_seen(load(root).train.x) <= {pixels(seed) for seed in range(20, 30)}


def test_the_same_content_is_decoded_once(tmp_path: Path, work: Counts) -> None:
    root = bitmaps(tmp_path / "x", range(10))
    first = load(root)
    assert work.since() == (10, 10)
    assert load(root).train.sha256 == first.train.sha256
    assert work.since() == (0, 0)
    os.utime(root / "0.bmp", (1, 1))
    assert load(root).train.sha256 == first.train.sha256
    assert work.since() == (10, 0)
    shutil.copytree(root, tmp_path / "copy" / "x", copy_function=shutil.copyfile)  # new times
    assert load(tmp_path / "copy" / "x").train.sha256 == first.train.sha256
    assert work.since() == (10, 0)
    picture(99).save(root / "0.bmp")
    changed = load(root)
    assert {changed.train.sha256, changed.test.sha256} != {first.train.sha256, first.test.sha256}
    assert work.since() == (10, 10)


def test_classes_and_splits_are_part_of_the_content(tmp_path: Path, work: Counts) -> None:
    """Of the same files in the same order."""
    root = folder(tmp_path / "x", {f"{'ab'[i // 6]}/{i:02}.png": i for i in range(12)})
    first = load(root)
    assert (work.since(), first.class_names) == ((12, 12), ("a", "b"))
    (root / "b").rename(root / "c")
    assert load(root).class_names == ("a", "c")  # the same labels
    assert work.since() == (12, 0)
    (root / "a" / "05.png").rename(root / "c" / "05.png")
    load(root)
    assert work.since() == (12, 12)
    load(root, test_share=0.5)
    assert work.since() == (12, 12)


def test_a_damaged_or_missing_listing_is_made_again(
    tmp_path: Path, cache: Path, work: Counts
) -> None:
    root = bitmaps(tmp_path / "x", range(10))
    load(root)
    (listing,) = (cache / "listings").glob("*.json")
    whole = listing.read_text()
    assert set(json.loads(whole)) == {"train", "test"}
    work.since()
    listing.write_text(whole[:20])
    load(root)
    assert work.since() == (10, 0)
    assert listing.read_text() == whole


def test_a_cache_that_cannot_be_written_keeps_no_listing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of an administrator, in which the data set lies already."""
    root = bitmaps(tmp_path / "x", range(10))
    first = load(root)
    shutil.rmtree(cache / "listings")
    (cache / "listings").write_text("no folder")
    assert load(root).train.sha256 == first.train.sha256


def test_reading_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr(progress, "_listeners", [lambda *given: shown.append(given[:3])])
    load(bitmaps(tmp_path / "x", range(10)))
    assert shown[0] == ("checksums", 10, 10)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    root = bitmaps(tmp_path / "x", range(2))
    files = [SourceFile(str(path), path.stat()) for path in sorted(root.iterdir())]
    (root / "1.bmp").unlink()
    (root / "1.bmp").mkdir()  # root, who may run the tests, can read every file
    with pytest.raises(UserError, match=r"x/1.bmp cannot be read \(Is a directory\)"):
        content_hashes("", {"files": files})


def test_a_data_set_has_the_name_that_was_given(tmp_path: Path) -> None:
    """Not that of what a link leads to: a new version would have another."""
    bitmaps(tmp_path / "store-v2", range(10))
    (tmp_path / "celeba").symlink_to("store-v2")
    assert load(tmp_path / "celeba").name == "celeba"
