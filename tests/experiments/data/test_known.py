"""``data.is``: what a data set is declared to be is checked, recorded, and changes no key."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.data import DATA, Dataset, Split
from fewstep.experiments.data import known as known_data
from fewstep.experiments.data.content_hash import known_sha256
from fewstep.experiments.data.folder import ImageFolder
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.data.known import KNOWN, KnownData, declared
from fewstep.experiments.data.latents import Latents

CATS = KnownData(8, 3, 2, 6, 2, True, "nobody")
FACES = KnownData(8, 3, 0, 8, 0, True, "nobody")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two public data sets that fit into a test."""
    monkeypatch.setitem(known_data.KNOWN, "cats_8", CATS)
    monkeypatch.setitem(known_data.KNOWN, "faces_8", FACES)


def data(
    train: int = 6, test: int = 2, classes: int = 2, side: int = 8, grey: bool = False
) -> Dataset:
    def split(n: int) -> Split:
        y = torch.arange(n) % classes if classes else None
        return Split(torch.zeros(n, 1 if grey else 3, side, side, dtype=torch.uint8), y)

    return Dataset("mine", split(train), split(test), classes)


def test_what_is_declared_is_checked() -> None:
    assert declared(data(), "cats_8").is_ == "cats_8"
    assert declared(data(classes=0), "cats_8").is_ == "cats_8"  # trained without conditions
    assert declared(data(test=1), "cats_8").is_ == "cats_8"  # of its held-out images, some
    assert declared(data(6, 2, 0), "faces_8").is_ == "faces_8"  # its authors hold out none
    assert declared(data(8, 3, 0), "faces_8").is_ == "faces_8"
    assert declared(data(), "").is_ == ""
    for bad, name, why in (
        (data(side=4), "cats_8", "images of 3x4x4, expected 3x8x8"),
        (data(grey=True), "cats_8", "images of 1x8x8, expected 3x8x8"),
        (data(classes=3), "cats_8", "3 classes, expected 2 classes"),
        (data(5, 3), "cats_8", "5 training and 3 held-out images, expected 6 training images"),
        (data(6, 2), "faces_8", r"2 classes, expected no classes \(data.labels=false"),
        (data(6, 1, 0), "faces_8", "6 training and 1 held-out images, expected 8 in all"),
    ):
        with pytest.raises(UserError, match=rf"mine is not {name} \(data.is\): it has {why}"):
            declared(bad, name)
    with pytest.raises(UserError, match=r"unknown data.is 'cat_8'; did you mean 'cats_8'\?"):
        compose(["data=image_folder", "data.is=cat_8"])


def test_the_number_of_pixels_of_latents_is_that_of_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))

    def write(name: str, **about: object) -> Path:
        folder, splits = tmp_path / name, {}
        folder.mkdir()
        for split, n in (("train", 6), ("test", 2)):
            x = np.zeros((n, 4, 2, 2), np.float32)
            file = folder / f"{split}-00000.safetensors"
            save_file({"mean": x, "std": x, "y": np.arange(n) % 2}, file)
            shard = {"file": file.name, "count": n, "sha256": known_sha256(file)}
            splits[split] = {"count": n, "shards": [shard]}
        manifest = {"format": 1, "shape": [4, 2, 2], "dtype": "float32", "num_classes": 2,
                    "splits": splits, **about}  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def load(folder: Path, name: str = "cats_8", labels: bool = True) -> Dataset:
        return Latents(str(tmp_path), folder.name, is_=name, labels=labels).load()

    made = write("made", source={"shape": [3, 8, 8]}, autoencoder={"factor": 4})
    assert load(made).is_ == "cats_8"
    assert load(write("other", autoencoder={"factor": 4})).is_ == "cats_8"
    assert load(made, "faces_8", labels=False).num_classes == 0
    plain, whole = load(made, "", labels=False), load(made, "")
    assert plain.train.y is None
    assert plain.train.std is not None
    assert plain.train.sha256 != whole.train.sha256
    with pytest.raises(UserError, match="images of 3x4x4, expected 3x8x8"):
        load(write("small", source={"shape": [3, 4, 4]}))
    with pytest.raises(UserError, match="does not say how large the images were"):
        load(write("silent"))
    with pytest.raises(UserError, match="contradicts itself: images of 3x8x8, latents of 4x2x2"):
        load(write("liar", source={"shape": [3, 8, 8]}, autoencoder={"factor": 8}))


def test_it_is_recorded_and_changes_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for split, n in (("train", 3), ("test", 1)):
        for label in ("cat", "lion"):
            (folder := tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (i, n, len(label))).save(folder / f"{i}.png")
    source = ImageFolder(root=str(tmp_path), size=8, is_="cats_8")
    record, plain = data_record(source.load()), data_record(replace(source, is_="").load())
    assert record["is"] == "cats_8"
    assert {k: v for k, v in record.items() if k != "is"} == plain
    for name in ("image_folder", "huggingface", "latents"):
        assert compose([f"data={name}", "data.is=cats_8"]).key == compose([f"data={name}"]).key
    assert compose([("data", "latents"), ("data.is", "cats_8")]).data.is_ == "cats_8"


def test_every_labelled_data_set_can_be_used_without_its_labels() -> None:
    labelled = [name for name in DATA.names() if name != "gaussian"]  # which has none
    for name in labelled:
        entry = DATA[name]
        assert "labels" in {f.name for f in fields(entry)}, name  # type: ignore[arg-type]
        with_labels, without = (
            compose([f"data={name}", f"data.labels={v}"]) for v in (True, False)
        )
        assert with_labels.key == compose([f"data={name}"]).key != without.key, name
    for name in ("digits", "gaussians", "conditional_gaussians"):
        whole, plain = (compose([f"data={name}", f"data.labels={v}"]).data.load() for v in (1, 0))
        assert whole.has_conditions
        assert not plain.has_conditions
        assert torch.equal(whole.train.x, plain.train.x)
    for name in ("mnist", "fashion_mnist", "cifar10"):
        plain = DATA[name].__class__(labels=False).placeholder()  # type: ignore[attr-defined, call-arg]
        assert plain.num_classes == 0
        assert plain.shape == (KNOWN[name].channels, KNOWN[name].size, KNOWN[name].size)
