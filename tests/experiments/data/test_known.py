"""``data.is``: what a data set is declared to be is checked, recorded, and changes no key."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from fewstep.analysis import load
from fewstep.cli.commands.evaluate import evaluate
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.data import DATA, Dataset, Split
from fewstep.experiments.data import known as known_data
from fewstep.experiments.data.content_hash import known_sha256
from fewstep.experiments.data.folder import ImageFolder
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.data.known import KNOWN, KnownData, declared
from fewstep.experiments.data.latents import Latents
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.trained_guidance import settings_of

SETTINGS = [
    "data=image_folder", "data.size=8", "backbone=dit_digits", "backbone.depth=1",
    "backbone.width=16", "backbone.heads=2", "training.batch_size=2", "training.steps=2",
    "training.validate_every=0", "evaluation.steps=[1]", "evaluation.extractor=raw",
]  # fmt: skip
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


def pictures(root: Path) -> None:
    """As cats_8 has them, in ``root``/images."""
    for split, n in (("train", 3), ("test", 1)):
        for label in ("cat", "lion"):
            (folder := root / "images" / split / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (i, n, len(label))).save(folder / f"{i}.png")


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

    def read(folder: Path, name: str = "cats_8", labels: bool = True) -> Dataset:
        return Latents(str(tmp_path), folder.name, is_=name, labels=labels).load()

    made = write("made", source={"shape": [3, 8, 8]}, autoencoder={"factor": 4})
    assert read(made).is_ == "cats_8"
    assert read(write("other", autoencoder={"factor": 4})).is_ == "cats_8"
    assert read(made, "faces_8", labels=False).num_classes == 0
    plain, whole = read(made, "", labels=False), read(made, "")
    assert plain.train.y is None
    assert plain.train.std is not None
    assert plain.train.sha256 != whole.train.sha256
    with pytest.raises(UserError, match="images of 3x4x4, expected 3x8x8"):
        read(write("small", source={"shape": [3, 4, 4]}))
    with pytest.raises(UserError, match="does not say how large the images were"):
        read(write("silent"))
    with pytest.raises(UserError, match="contradicts itself: images of 3x8x8, latents of 4x2x2"):
        read(write("liar", source={"shape": [3, 8, 8]}, autoencoder={"factor": 8}))


def test_it_is_recorded_and_changes_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    pictures(tmp_path)
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


def test_a_run_tells_what_its_data_are_even_if_declared_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    pictures(tmp_path)
    settings = [*SETTINGS, f"data.root={tmp_path}", f"runs={tmp_path / 'runs'}"]
    directory = prepare(compose(settings))
    run(directory)
    assert "is" not in (directory.data() or {})
    facts = load(directory.path.parent).iloc[0]
    assert facts["conditional"] == "classes"
    assert pd.isna(facts["data_is"])
    evaluate(directory.key, ["data.is=cats_8"], runs=str(tmp_path / "runs"))
    assert (directory.data() or {})["is"] == "cats_8"
    facts = load(directory.path.parent).iloc[0]
    assert (facts["data_is"], facts["trained_guidance"]) == ("cats_8", "")
    with pytest.raises(UserError, match="is not faces_8"):
        evaluate(directory.key, ["data.is=faces_8"], runs=str(tmp_path / "runs"))
    plain = prepare(compose([*settings, "data.is=cats_8", "data.labels=false", "sweep=plain"]))
    run(plain)
    facts = load(plain.path.parent).iloc[0]
    assert (facts["data_is"], facts["conditional"]) == ("cats_8", "none")


def test_guidance_that_is_trained_in_is_named() -> None:
    def told(*overrides: str) -> str:
        return settings_of(compose(["data=digits", *overrides]).objective)

    mean_flow = ["objective=mean_flow", "objective.mixing=0.92"]
    assert told("objective=mean_flow") == told("objective=shortcut") == ""
    assert told(*mean_flow, "objective.guidance=0.2", "objective.guidance_interval=[0,0.75]") == (
        "guidance=0.2, mixing=0.92, guidance_interval=0-0.75"
    )
    assert told("objective=scd", "objective.teacher_guidance=2") == "teacher_guidance=2"
