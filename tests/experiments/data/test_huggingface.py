"""Data sets of Hugging Face's ``datasets``, made here and saved in its own formats."""

from __future__ import annotations

import builtins
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.data.huggingface import HuggingFace

datasets = pytest.importorskip("datasets", reason="pip install 'fewstep[huggingface]'")
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and a network that nobody may ask."""

    def refuse(*given: object) -> None:
        raise AssertionError(f"somebody asked the network: {given[1:]}")

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    datasets.disable_progress_bars()


def picture(seed: int) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(array)


def pixels(seed: int) -> bytes:
    return np.asarray(picture(seed)).transpose(2, 0, 1).tobytes()


def table(seeds: range, **more: Any) -> Any:
    columns = {"img": [picture(s) for s in seeds], "label": [s % 3 for s in seeds], **more}
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("int64") for name in more}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(root: Path, how: str, test: str | None = "test") -> Path:
    """30 training images of seeds 0 to 29, 6 others of 100 to 105, as ``root``/bugs."""
    place = root / "bugs"
    splits = {"train": table(range(30))} | ({test: table(range(100, 106))} if test else {})
    if how == "disk":
        datasets.DatasetDict(splits).save_to_disk(place)
    elif how == "one":
        splits["train"].save_to_disk(place)
    else:
        place.mkdir()
        for name, split in splits.items():
            split.to_parquet(place / f"{name}-00000-of-00001.parquet")
    return place


def load(root: Path, **settings: Any) -> Any:
    return HuggingFace(**{"root": str(root), "dataset": "bugs", "size": 8, **settings}).load()


@pytest.mark.parametrize("how", ["disk", "parquet"])
@pytest.mark.parametrize("test", ["test", "validation"])
def test_what_was_saved_is_read(tmp_path: Path, how: str, test: str) -> None:
    save(tmp_path, how, test)
    data = load(tmp_path)
    assert (data.name, data.shape, data.num_classes) == ("bugs", (3, 8, 8), 3)
    for split, seeds in ((data.train, range(30)), (data.test, range(100, 106))):
        found = {x.numpy().tobytes(): int(y) for x, y in zip(split.x, split.y, strict=True)}
        assert found == {pixels(s): s % 3 for s in seeds}


def test_parquet_files_replaced_with_the_same_time_are_read_anew(tmp_path: Path) -> None:
    """As ``cp -p``, ``rsync -t`` and ``tar`` leave them; ``datasets`` looks at the time alone."""

    def write(seeds: range) -> Any:
        shutil.rmtree(tmp_path / "bugs", ignore_errors=True)
        (tmp_path / "bugs").mkdir()
        for name, rows in (("train", seeds), ("test", range(100, 106))):
            table(rows).to_parquet(file := tmp_path / "bugs" / f"{name}-0.parquet")
            os.utime(file, (1e9, 1e9))
        return load(tmp_path)

    first, second = write(range(30)), write(range(30, 63))
    assert (len(first.train), len(second.train)) == (30, 33)
    assert {x.numpy().tobytes() for x in second.train.x} == {pixels(s) for s in range(30, 63)}


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_files_with_their_classes_in_another_order_are_refused(tmp_path: Path, kind: str) -> None:
    """``datasets`` gives both the names of the first; arrow files are of two formats."""
    import pyarrow

    (tmp_path / "bugs").mkdir()
    suffix = "parquet" if kind == "parquet" else "arrow"
    for name, names in (("train", ["a", "b", "c"]), ("test", ["c", "a", "b"])):
        made = table(range(12)).cast_column("label", datasets.ClassLabel(names=names))
        path = tmp_path / "bugs" / f"{name}-0.{suffix}"
        if kind == "parquet":
            made.to_parquet(path)
            continue
        rows = made.data.table
        writer = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with writer(str(path), rows.schema) as out:
            out.write_table(rows)
    says = rf"test-0.{suffix} and train-0.{suffix} .*c, a, b and a, b, c"
    with pytest.raises(UserError, match=says):
        load(tmp_path)
    assert load(tmp_path, labels=False).num_classes == 0


def test_a_folder_of_image_files_is_read_whole_or_refused(tmp_path: Path) -> None:
    """What ``datasets`` would drop or merge in silence: links, other splits, files unnamed."""
    folder = tmp_path / "bugs"

    def build(*names: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for i in range(5 * len(names)):
            (place := folder / names[i // 5]).mkdir(parents=True, exist_ok=True)
            picture(i).save(place / f"{i}.png")

    build("train/ant", "train/bee", "test/ant", "test/bee")
    assert load(tmp_path).class_names == ("ant", "bee")
    build("Train/ant", "Train/bee", "Test/ant", "Test/bee")
    with pytest.raises(UserError, match=r"holds 10 and 10 images, of which .* has read 20 images"):
        load(tmp_path)
    build("bicycle", "car", "train")
    with pytest.raises(UserError, match=r"use data=image_folder: .* holds train/ beside bicycle/"):
        load(tmp_path, labels=False)
    build("ant", "bee")
    assert len(load(tmp_path).train) == 9
    (folder / "ant" / "0.png").rename(folder / "ant" / "unnamed")
    with pytest.raises(UserError, match="holds 10 images, of which datasets has read 9 images"):
        load(tmp_path)
    (folder / "ant" / "8.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match="use data=image_folder: 1 broken link"):
        load(tmp_path)


def test_a_single_table_is_split(tmp_path: Path) -> None:
    save(tmp_path, "one")
    data = load(tmp_path, test_share=0.2)
    assert data.test.y.bincount().tolist() == [2, 2, 2]
    everything = {x.numpy().tobytes() for x in torch.cat((data.train.x, data.test.x))}
    assert everything == {pixels(s) for s in range(30)}
    assert load(tmp_path, test_share=0.2).train.sha256 == data.train.sha256
    assert len(load(tmp_path, test_share=0.5).test) == 15


def test_an_absolute_path_that_is_gone_is_found_in_the_root(tmp_path: Path) -> None:
    place = save(tmp_path / "old", "disk")
    shutil.move(tmp_path / "old", tmp_path / "new")
    data = load(tmp_path / "new", dataset=str(place))
    assert (data.name, len(data.train)) == ("bugs", 30)


def test_an_absolute_path_without_labels_in_grey(tmp_path: Path) -> None:
    place = save(tmp_path, "disk")
    data = HuggingFace(dataset=str(place), size=4, grey=True, labels=False).load()
    assert (data.shape, data.num_classes, data.train.y) == ((1, 4, 4), 0, None)


def test_columns_are_found_or_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "bugs"
    made = table(range(12), labels=[s % 2 for s in range(12)], age=list(range(12)))
    made.save_to_disk(place)
    with pytest.raises(UserError, match=r"several columns of labels: .*\(label, labels\)"):
        load(tmp_path)
    assert load(tmp_path, label="labels").num_classes == 2
    with pytest.raises(UserError, match=r"unknown data.label 'lable'; did you mean 'label'"):
        load(tmp_path, label="lable")
    with pytest.raises(
        UserError, match=r"data.image: column age \(int64\) is none of images \(choices: img\)"
    ):
        load(tmp_path, image="age")
    made.remove_columns(["img"]).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=r"no column of images among label \(ClassLabel\), lab"):
        load(tmp_path, dataset="none")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, "disk")
    with pytest.raises(UserError, match=r"unknown data.train 'trian'; did you mean 'train'"):
        load(tmp_path, train="trian")
    with pytest.raises(UserError, match=r"unknown data.test 'val'"):
        load(tmp_path, test="val")


def test_a_bad_image_is_named_by_its_row(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(decode=False)})
    raw = [{"bytes": b"<html>", "path": None}] * 10
    datasets.Dataset.from_dict({"img": raw}, features=features).save_to_disk(tmp_path / "bugs")
    with pytest.raises(UserError, match=r"bugs: img of row \d of train is not a readable image"):
        load(tmp_path, labels=False)


def test_damaged_files_are_refused_by_the_folders_name(tmp_path: Path) -> None:
    place = save(tmp_path, "disk")
    (place / "train" / "data-00000-of-00001.arrow").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=f"{place} cannot be loaded") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ylecun/nothing .*data.download=true would") as caught:
        load(tmp_path, dataset="ylecun/nothing")
    assert "asked the network" not in str(caught.value)
    assert not datasets.config.HF_HUB_OFFLINE  # as it was


def test_asked_to_it_asks_the_network(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, UserError), match="somebody asked the network"):
        load(tmp_path, dataset="ylecun/nothing", download=True)


@pytest.mark.parametrize("dataset", ["./gone", "/gone/too", "a/b/c", "../up"])
def test_what_can_only_be_a_folder(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=r"no data set at .*, and no name on the hub"):
        load(tmp_path, dataset=dataset)


def test_no_name_at_all() -> None:
    with pytest.raises(UserError, match=r"data.dataset names no data set"):
        HuggingFace().load()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[huggingface\]'"):
        load(tmp_path)


def test_where_it_comes_from_is_no_part_of_a_runs_key() -> None:
    def key(*settings: str) -> str:
        return compose(["data=huggingface", "data.dataset=bugs", *settings]).key

    assert key("data.download=true") == key("data.cache=/x") == key("data.root=/y") == key()
    assert len({key(), key("data.label=fine"), key("data.subset=x"), key("data.size=64")}) == 4
