"""Every file below a folder of images is used, refused by name, or reported as skipped."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.image_folders import as_seen, folder, load, picture, pixels

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Images of seeds 0 to 9: five cats, five dogs."""
    files = {f"{c}/{i}.png": 5 * j + i for j, c in enumerate(("cat", "dog")) for i in range(5)}
    return folder(tmp_path / "pets", files)


def seen(data: Dataset) -> set[bytes]:
    return as_seen(data.train.x) | as_seen(data.test.x)


def pictures(*seeds: int) -> set[bytes]:
    return {pixels(seed) for seed in seeds}


def test_linked_folders_are_followed(pets: Path, tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere", {"deep/20.png": 20, "21.png": 21})
    (pets / "cat" / "more").symlink_to("../../elsewhere")
    folder(tmp_path / "again", {"20.png": 20})
    (pets / "eel").symlink_to(tmp_path / "again")
    data = load(pets)
    assert seen(data) == pictures(*range(10), 20, 21)
    assert (len(data.train) + len(data.test), data.class_names) == (13, ("cat", "dog", "eel"))
    assert data.notes == ()


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../.."])
def test_a_link_to_a_folder_above_is_skipped(pets: Path, target: str) -> None:
    (pets / "cat" / "back").symlink_to(target)
    (pets / "dog" / "other").symlink_to("..")
    data = load(pets)
    assert seen(data) == pictures(*range(10))
    assert len(data.train) + len(data.test) == 10
    assert data.notes == ("skipped 2 links to a folder above (cat/back, ...)",)


def test_one_folder_is_not_two_classes_nor_both_splits(tmp_path: Path) -> None:
    """By links, deep ones, too; of single files there is a note: data sets hold some twice."""
    train = {f"{name}/{i}.png": i for i, name in enumerate(["cat", "dog"] * 5)}
    folder(tmp_path / "x" / "train", train)
    (tmp_path / "x" / "test").symlink_to("train")
    with pytest.raises(UserError, match=r"test/cat and .*train/cat are one folder, and would be a"):
        load(tmp_path / "x")
    (tmp_path / "x" / "test").unlink()
    folder(tmp_path / "x" / "test", {"dog/20.png": 20, "cat/21.png": 21})
    assert load(tmp_path / "x").notes == ()
    (tmp_path / "x" / "test" / "cat" / "22.png").symlink_to("../../train/cat/0.png")
    (note,) = load(tmp_path / "x").notes
    says = r"1 held-out image is a training image, too \(.*test/cat/22.png is .*train/cat/0.png\)"
    assert re.fullmatch(says, note)
    (tmp_path / "x" / "test" / "cat" / "more").symlink_to("../../train/cat")
    with pytest.raises(UserError, match=r"test/cat/more and .*train/cat are one folder"):
        load(tmp_path / "x")
    (tmp_path / "x" / "train" / "latest").symlink_to("dog")
    with pytest.raises(UserError, match="are one folder, and would be two classes"):
        load(tmp_path / "x" / "train")


@pytest.mark.parametrize("target", ["/nowhere/image.png", "missing.png", "0.png/image.png"])
def test_broken_links_are_refused(pets: Path, target: str) -> None:
    for name in ("8.png", "9.png", "no_suffix"):
        (pets / "cat" / name).symlink_to(target)
    says = rf"3 broken links below .*pets \(.*cat/8.png -> {target}\): .*git annex get, dvc pull"
    with pytest.raises(UserError, match=says):
        load(pets)


def test_a_link_to_itself_and_a_broken_folder_are_refused(pets: Path) -> None:
    (pets / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=r"1 broken link below .*loop.png -> loop.png"):
        load(pets)
    (pets / "cat" / "loop.png").unlink()
    for name in ("eel", "test"):  # a class, or a split, that is not mounted
        (pets / name).symlink_to("/not/mounted")
        with pytest.raises(UserError, match=rf"1 broken link .*{name} -> /not/mounted"):
            load(pets)
        (pets / name).unlink()


@pytest.mark.parametrize("place", ["", "dog", "dog/deep"])
def test_a_folder_that_cannot_be_read_is_refused(
    pets: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pets / "dog" / "deep").mkdir()
    real = os.scandir

    def denied(path: Any) -> Any:  # root, who may run the tests, can read everything
        if Path(path) == pets / place:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=rf"{pets / place} cannot be read \(Permission denied\)"):
        load(pets)


def test_a_file_that_cannot_be_read_is_refused(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = pets / "dog" / "target"
    picture(20).save(target, format="PNG")
    (pets / "dog" / "link.png").symlink_to(target)
    real = os.stat

    def denied(path: Any, **given: Any) -> Any:
        if path == str(pets / "dog" / "link.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **given)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(UserError, match=r"dog/link.png cannot be read \(Permission denied\)"):
        load(pets)


def test_what_is_hidden_is_skipped_and_counted(pets: Path) -> None:
    folder(pets, {f"dog/.ipynb_checkpoints/{i}.png": 20 + i for i in range(3)})
    folder(pets, {"cat/._0.png": 30, "cat/deep/.thumb.png": 31, ".git/a.png": 32})
    folder(pets, {"cat/@eaDir/0.png": 33, "__MACOSX/cat/._0.png": 34})
    (pets / "cat" / ".#0.png").symlink_to("user@host:1")  # Emacs' lock
    data = load(pets)
    assert seen(data) == pictures(*range(10))
    assert data.class_names == ("cat", "dog")
    assert set(data.notes) == {
        "skipped 2 hidden folders (.git, ...)",
        "skipped 3 hidden files (cat/.#0.png, ...)",
        "skipped 2 system folders (__MACOSX, ...)",
    }


def test_the_header_tells_what_has_no_suffix(pets: Path) -> None:
    for i, (name, kind) in enumerate(
        {"20": "PNG", "21": "JPEG", "img.001": "PNG", "photo.jfif": "JPEG", "scan": "TIFF"}.items()
    ):
        picture(20 + i).save(pets / "dog" / name, format=kind)
    for name in ("README", "Makefile"):
        (pets / "dog" / name).write_text("not an image")
    (pets / "dog" / "empty").touch()
    (pets / "dog" / "index").write_bytes(b"\x28\0\0\0" + bytes(60))  # begins as a DIB does
    data = load(pets)
    assert len(data.train) + len(data.test) == 15
    assert pictures(20, 22, 24) <= seen(data)
    assert data.notes == ("skipped 4 files without suffix or image header (dog/Makefile, ...)",)


def test_texts_are_skipped_and_counted(pets: Path) -> None:
    for name in ("labels.txt", "cat/README.md", "cat/0.json"):
        (pets / name).write_text("passed over")
    (pets / "dog" / "annexed.txt").symlink_to("/nowhere")
    assert load(pets).notes == ("skipped 4 text or data files (cat/0.json, ...)",)


@pytest.mark.parametrize(
    ("name", "kind"), [("film.mp4", None), ("raw.nef", "TIFF"), ("icon.ico", "ICO"), ("a.x", "DIB")]
)
def test_other_files_are_refused(pets: Path, name: str, kind: str | None) -> None:
    if kind:  # a camera's raw image is a TIFF of its preview
        picture(0).save(pets / "dog" / name, format=kind)
    else:
        (pets / "dog" / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"dog/{name} is not an image \(choices: \.png"):
        load(pets)


@pytest.mark.parametrize("name", ["pipe", "pipe.png"])
def test_a_pipe_is_refused(pets: Path, name: str) -> None:
    os.mkfifo(pets / "dog" / name)
    with pytest.raises(UserError, match=f"dog/{name} is no regular file"):
        load(pets)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "JPEG2000", "PCX"])
def test_other_formats_are_refused_by_name(pets: Path, kind: str) -> None:
    picture(0).save(pets / "dog" / "5.png", format=kind)
    with pytest.raises(UserError, match=r"dog/5.png is not .* \(not recognised as PNG, JPEG, WEBP"):
        load(pets)


@pytest.mark.parametrize(
    "text", ["version https://git-lfs.github.com/spec/v1\noid sha256:0", "/annex/objects/SHA256E-s"]
)
def test_pointers_to_files_that_were_not_fetched_are_refused(pets: Path, text: str) -> None:
    (pets / "dog" / "5.png").write_text(text)
    with pytest.raises(UserError, match=r"dog/5.png is not .*a pointer of Git LFS or git-annex"):
        load(pets)
