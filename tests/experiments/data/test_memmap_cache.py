"""Data sets kept as files: what is read is what was made, once, and never all at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.errors import UserError
from fewstep.experiments.data import Split
from fewstep.experiments.data.memmap_cache import SplitSource, cache_folder, cached_splits
from fewstep.experiments.progress import listen

X = np.random.default_rng(0).integers(0, 256, (7, 3, 2, 4), dtype=np.uint8)
Y = np.arange(7) % 3


def parts(labels: bool = True, latents: bool = False) -> dict[str, SplitSource]:
    x = X.astype(np.float16) / 3 if latents else X

    def blocks(rows: slice) -> Iterator[dict[str, Any]]:
        for i in range(*rows.indices(7))[::2]:
            block = slice(i, min(i + 2, rows.stop))
            yield (
                {"x": x[block], "std": x[block] / 2, "y": Y[block]} if latents else {"x": x[block]}
            )

    def part(rows: slice) -> SplitSource:
        y = None if latents or not labels else Y[rows]
        return SplitSource(len(x[rows]), blocks(rows), y)

    return {"train": part(slice(0, 5)), "test": part(slice(5, 7))}


@pytest.mark.parametrize("labels", [True, False])
def test_images_are_what_they_were_and_so_is_their_hash(tmp_path: Path, labels: bool) -> None:
    train, test = cached_splits(str(tmp_path), "a set/of images", {"a": 1}, lambda: parts(labels))
    in_memory = Split(torch.from_numpy(X[:5]), torch.from_numpy(Y[:5]) if labels else None)
    assert torch.equal(train.x, in_memory.x)
    assert train.sha256 == in_memory.sha256
    assert np.array_equal(test.x.numpy(), X[5:])
    assert (train.y is not None and train.y.tolist() == Y[:5].tolist()) == labels
    rows = train.rows(torch.tensor([3, 0, 3]))
    assert np.array_equal(rows.x.numpy(), X[[3, 0, 3]])
    assert rows.std is None
    rows.x.zero_()  # a copy: the files stay as they are
    assert torch.equal(train.x, in_memory.x)


def test_latents_keep_their_spread_and_labels_that_came_with_them(tmp_path: Path) -> None:
    train, test = cached_splits(str(tmp_path), "latents", {}, lambda: parts(latents=True))
    x = torch.from_numpy(X.astype(np.float16) / 3)
    in_memory = Split(x[:5], torch.from_numpy(Y[:5]), x[:5] / 2)
    assert train.std is not None
    assert torch.equal(train.std, in_memory.std)
    assert train.sha256 == in_memory.sha256
    assert test.y.tolist() == Y[5:].tolist()
    other = Split(x[:5], torch.from_numpy(Y[:5]), x[:5] / 3)
    assert len({other.sha256, Split(x[:5], torch.from_numpy(Y[:5])).sha256, train.sha256}) == 3


def test_made_once_for_each_identity(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, SplitSource]:
        made.append(1)
        return parts()

    for identity in ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 1}):
        cached_splits(str(tmp_path), "x", identity, make)
    assert len(made) == 2
    folders = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(folders) == 2
    assert all(p.name.startswith("x-") for p in folders)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def blocks() -> Iterator[dict[str, Any]]:
        yield {"x": X[:2]}
        raise UserError("image 3 is bad")

    def make() -> dict[str, SplitSource]:
        return {"train": SplitSource(5, blocks()), "test": parts()["test"]}

    with pytest.raises(UserError, match="image 3 is bad"):
        cached_splits(str(tmp_path), "x", {}, make)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(cached_splits(str(tmp_path), "x", {}, parts)[0]) == 5


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    cached_splits(str(tmp_path), "x", {}, parts)
    (place,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    place.rename(torn := tmp_path / f".{place.name}.4711")
    (torn / "manifest.json").unlink()
    cached_splits(str(tmp_path), "x", {}, parts)
    assert not torn.exists()


def _make(cache: str, made: Any) -> None:
    def make() -> dict[str, SplitSource]:
        made.value += 1
        return parts()

    cached_splits(cache, "x", {}, make)


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0)
    workers = [context.Process(target=_make, args=(str(tmp_path), made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert made.value == 1


@pytest.mark.parametrize("damage", ["short", "missing", "no manifest", "other manifest"])
def test_a_damaged_cache_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    cached_splits(str(tmp_path), "x", {}, parts)
    (place,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    if damage == "short":
        os.truncate(place / "train.x", 7)
    elif damage == "missing":
        (place / "test.y").unlink()
    elif damage == "no manifest":
        (place / "manifest.json").unlink()
    else:
        (place / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=f"{place} is damaged .*remove it, and it is made again"):
        cached_splits(str(tmp_path), "x", {}, parts)


def test_more_than_the_memory_holds(tmp_path: Path) -> None:
    """A sparse file of a terabyte: no more of it is read than is asked for."""
    rows = 2**40 // X[0].nbytes
    cached_splits(str(tmp_path), "x", {}, parts)
    (place,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["splits"]["train"]["arrays"] = {"x": {"shape": [rows, 3, 2, 4], "dtype": "|u1"}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    try:
        os.truncate(place / "train.x", rows * X[0].nbytes)
    except OSError as error:
        pytest.skip(f"no sparse files of a terabyte here: {error}")
    train, _ = cached_splits(str(tmp_path), "x", {}, parts)
    assert train.sha256 == manifest["splits"]["train"]["sha256"]  # not by reading it all
    got = train.rows(torch.tensor([rows - 1, 3]))
    assert int(got.x[0].sum()) == 0
    assert np.array_equal(got.x[1].numpy(), X[3])


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot keep x in .*file/cache .*data\.cache=DIR"):
        cached_splits(str(tmp_path / "file" / "cache"), "x", {}, parts)


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEWSTEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("") == tmp_path / "xdg" / "fewstep"
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "ours"))
    assert cache_folder("") == tmp_path / "ours"
    assert cache_folder(str(tmp_path / "own")) == tmp_path / "own"


def test_progress_is_told(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    listen(lambda phase, done, total, rate: heard.append((phase, done, total)))
    try:
        cached_splits(str(tmp_path), "x", {}, parts)
    finally:
        listen(lambda phase, done, total, rate: None)
    assert heard == [("train", 2, 5), ("train", 4, 5), ("train", 5, 5), ("test", 2, 2)]
