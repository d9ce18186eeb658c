"""Labels and images of Hugging Face's tables: handled, or refused in one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.image_folders import as_seen, picture, pixels

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.huggingface import HuggingFace

datasets: Any = pytest.importorskip("datasets", reason="pip install 'fewstep[huggingface]'")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def classes(*names: str) -> Any:
    return datasets.ClassLabel(names=list(names))


def value(dtype: str) -> Any:
    return datasets.Value(dtype)


CATS = classes("cat", "dog")


def table(
    labels: Sequence[Any],
    kind: Any = CATS,
    first: int = 0,
    label: str = "label",
    image: str = "image",
) -> Any:
    """Images of seeds from ``first`` on, with these labels."""
    images = [picture(first + i) for i in range(len(labels))]
    features = datasets.Features({image: datasets.Image(), label: kind})
    return datasets.Dataset.from_dict({image: images, label: list(labels)}, features=features)


def load(root: Path, splits: dict[str, Any], **settings: Any) -> Dataset:
    datasets.DatasetDict(splits).save_to_disk(root / "pets")
    return again(root, **settings)


def again(root: Path, **settings: Any) -> Dataset:
    return HuggingFace(**{"root": str(root), "dataset": "pets", "size": 8, **settings}).load()


def by_image(*splits: Any) -> dict[bytes, int]:
    return {x.numpy().tobytes(): int(y) for s in splits for x, y in zip(s.x, s.y, strict=True)}


TRAIN = table([0, 1] * 10)


# ------------------------------------------------------------------------------ names of classes


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """In the test split dog is 0, and there is no eel."""
    train = table([0, 1, 2] * 4, classes("cat", "eel", "dog"))
    data = load(tmp_path, {"train": train, "test": table([0, 1, 1], classes("dog", "cat"), 50)})
    assert data.class_names == ("cat", "eel", "dog")
    assert by_image(data.test) == {pixels(50): 2, pixels(51): 0, pixels(52): 0}


def test_other_names_of_the_same_table_are_noticed(tmp_path: Path) -> None:
    splits = {"train": TRAIN, "test": table([0, 1], CATS, 50)}
    first = load(tmp_path, splits)
    file = tmp_path / "pets" / "test" / "dataset_info.json"
    file.write_text(file.read_text().replace('"cat"', '"x"').replace('"dog"', '"cat"')
                    .replace('"x"', '"dog"'))  # fmt: skip
    second = again(tmp_path)
    assert by_image(first.test) == {pixels(50): 0, pixels(51): 1}
    assert by_image(second.test) == {pixels(50): 1, pixels(51): 0}


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_strings_are_classes_sorted_by_name(tmp_path: Path, kind: str) -> None:
    train = table(["dog", "cat", "eel", "cat"] * 3, value(kind))
    test = table(["eel", "cat"], value(kind), 50)
    data = load(tmp_path, {"train": train, "test": test})
    assert data.class_names == ("cat", "dog", "eel")
    assert by_image(data.test) == {pixels(50): 2, pixels(51): 0}
    assert by_image(data.train)[pixels(4)] == 1


def test_strings_of_a_single_table_are_held_out_class_by_class(tmp_path: Path) -> None:
    data = load(tmp_path, {"train": table(["b"] * 6 + ["a"] * 4, value("string"), label="class")},
                test_share=0.5)  # fmt: skip
    assert data.test.y.bincount().tolist() == [2, 3]
    assert by_image(data.train, data.test) == {pixels(i): int(i < 6) for i in range(10)}


def test_a_column_of_another_name_is_taken_if_it_is_named(tmp_path: Path) -> None:
    splits = {"train": table(["dog", "cat"] * 6, value("string"), label="species")}
    with pytest.raises(
        UserError, match=r"among image \(Image\), species \(string\) \(data.labels=f"
    ):
        load(tmp_path, splits)
    assert again(tmp_path, label="species").class_names == ("cat", "dog")
    load(tmp_path / "ages", {"train": table([3, 0] * 6, value("int8"), label="age")}, label="age")


def test_classes_are_preferred_to_strings(tmp_path: Path) -> None:
    """As they were before strings were taken."""
    train = TRAIN.add_column("class", ["x"] * len(TRAIN))
    assert load(tmp_path, {"train": train}).class_names == ("cat", "dog")


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    data = load(tmp_path, {"train": table([True, False] * 6, value("bool"))})
    assert data.class_names == ("False", "True")
    assert by_image(data.train)[pixels(0)] == 1


def test_classes_without_training_images_are_noted(tmp_path: Path) -> None:
    data = load(tmp_path / "a", {"train": table([1, 4] * 6, value("int64"))})
    assert (data.num_classes, data.class_names) == (5, ())
    assert data.notes == ("3 of 5 classes have no training images (0, ...)",)
    data = load(tmp_path / "b", {"train": table([0, 0] * 6)})
    assert data.notes == ("1 of 2 classes have no training images (dog)",)


# --------------------------------------------------------------------------- which is held out


@pytest.mark.parametrize(
    "unlabelled",
    [
        table([-1] * 6, CATS, 50),
        table([None] * 6, CATS, 50),
        table([0] * 6, CATS, 50).remove_columns(["label"]),
        table([None] * 6, value("string"), 50),
    ],
)
def test_a_test_split_without_labels_is_passed_over(tmp_path: Path, unlabelled: Any) -> None:
    splits = {"train": TRAIN, "test": unlabelled, "validation": table([0, 1], CATS, 60)}
    data = load(tmp_path, splits)
    assert by_image(data.test) == {pixels(60): 0, pixels(61): 1}
    assert data.notes == ("skipped split test without labels, validation is held out",)
    assert as_seen(again(tmp_path, labels=False).test.x) == {pixels(i) for i in range(50, 56)}
    with pytest.raises(UserError, match=r"pets: split test: (label of row 0 is|no column 'label')"):
        again(tmp_path, test="test")
    datasets.DatasetDict(train=TRAIN, test=unlabelled).save_to_disk(tmp_path / "kaggle")
    with pytest.raises(UserError, match=r"test without labels in 'label': .*data.test=train"):
        again(tmp_path, dataset="kaggle")
    assert len(again(tmp_path, dataset="kaggle", test="train").test) == 2


def test_splits_that_are_not_used_are_noted(tmp_path: Path) -> None:
    two = table([0, 1], CATS, 60)
    data = load(tmp_path, {"train": TRAIN, "test": two, "validation": two, "extra": two})
    assert data.notes == ("skipped 2 other splits (validation, ...)",)
    assert load(tmp_path / "x", {"train": TRAIN, "Test": two}).notes == (
        "skipped 1 other split (Test)",
    )


# ------------------------------------------------------------------------------ what is refused


def unchecked(labels: Sequence[int]) -> Any:
    """Labels that ``datasets`` has not compared with the names of the classes."""
    made = table(labels, value("int64"))
    features = datasets.Features({**made.features, "label": CATS})
    return datasets.Dataset(made.data, info=datasets.DatasetInfo(features=features))


LIST = datasets.Sequence(value("int64"))
TWO = table([0, 1], CATS, 50)
WORDS = table(["cat", "dog"] * 6, value("string"))
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a class of the test split alone": (
        TRAIN, table([0, 1], classes("cat", "dog", "eel"), 50),
        "split test: class 'eel' is not among those to train on"),
    "a string of the test split alone": (
        WORDS, table(["eel"], value("string"), 50), "split test: class 'eel' is not among"),
    "a number of the test split alone": (
        table([0, 1] * 6, value("int64")), table([0, 5], value("int64"), 50),
        r"split test: the label of row 1 is above train's largest, 1 \(1 of 2 rows\)"),
    "no label": (
        table([0, None] * 6), TWO, r"split train: label of row 1 is None \(6 of 12 rows\)"),
    "no number": (
        table([0, None] * 6, value("int64")), TWO, "split train: label of row 1 is None"),
    "no string": (
        table(["cat", None, "dog"], value("string")), WORDS, "split train: label of row 1 is None"),
    "an empty string": (
        table(["cat", "", "dog"], value("string")), WORDS, "split train: label of row 1 is ''"),
    "no label in the test split": (
        TRAIN, table([0, None], CATS, 50), r"split test: label of row 1 is None \(1 of 2 rows\)"),
    "a negative label": (
        table([0, -1, 1, -1] * 3), TWO,
        r"split train: label of row 1 is -1, expected at least 0 \(6 of 12 rows\)"),
    "a label beyond the names": (
        unchecked([0, 1, 7, 1]), TWO, "split train: label of row 2 is 7, expected at most 1"),
    "unlabelled": (
        table([-1] * 6), TWO, r"split train: label of row 0 is -1, .* \(6 of 6 rows\)"),
    "numbers for classes": (
        TRAIN, table([0, 1], value("int64"), 50),
        "split test: its labels are numbers, those to train on classes"),
    "floats": (
        table([0.0, 1.0], value("float64")), TWO,
        r"no column of labels among image \(Image\), label \(float64\) \(data.labels=false"),
    "several labels": (
        table([[0], [0, 1]], LIST), TWO,
        r"no column of labels among .*, label \((List|Sequence)\) \("),
    "floats in the test split": (
        TRAIN, table([0.0, 1.0], value("float64"), 50),
        r"split test: no column 'label' of labels among image \(Image\), label \(float64\)"),
    "another name of the labels": (
        TRAIN, table([0, 1], CATS, 50, label="labels"),
        "test without labels in 'label': hold out a share"),
    "another name of the images": (
        TRAIN, table([0, 1], CATS, 50, image="img"),
        r"split test: no column 'image' of images among img \(Image\), label \(ClassLabel\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_refused(tmp_path: Path, case: str) -> None:
    train, test, says = REFUSED[case]
    with pytest.raises(UserError, match=f"^(pets: )?{says}") as caught:
        load(tmp_path, {"train": train, "test": test})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_a_split_without_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    splits = {"train": TRAIN, "test": TWO, empty: TRAIN.select([])}
    monkeypatch.setattr(HuggingFace, "_splits", lambda self: splits)
    with pytest.raises(UserError, match=f"split {empty} has no rows"):
        again(tmp_path, test="test")


def test_a_column_of_another_kind_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.label: column image \(Image\) is none of labels"):
        load(tmp_path, {"train": TRAIN}, label="image")


# -------------------------------------------------------------------------------------- images


def with_images(rows: Sequence[Any]) -> Any:
    """Rows as they are stored: {"bytes": ..., "path": ...}, or None."""
    features = datasets.Features({"image": datasets.Image(decode=False)})
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(pa.table({"image": column}), info=info)


def stored(seed: int, folder: Path) -> dict[str, Any]:
    picture(seed).save(folder / "image.bmp")
    return {"bytes": (folder / "image.bmp").read_bytes(), "path": "image.bmp"}


@pytest.mark.parametrize("none", [None, {"bytes": None, "path": None}])
def test_rows_without_an_image_are_refused(
    tmp_path: Path, none: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [stored(i, tmp_path) for i in range(8)]
    splits = {"train": with_images([*rows[:4], none, none]), "test": with_images(rows[4:])}
    monkeypatch.setattr(HuggingFace, "_splits", lambda self: splits)
    for names in ({}, {"train": "test", "test": "train"}):
        with pytest.raises(UserError, match=r"split train: image of row 4 is None \(2 of 6 rows"):
            again(tmp_path, labels=False, **names)


def imagefolder(place: Path, seeds: Sequence[int]) -> None:
    """Files that ``datasets`` leaves where they are: its table has paths."""
    place.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        picture(seed).save(place / f"{i}.bmp")
        os.utime(place / f"{i}.bmp", ns=(10**18, 10**18))


def test_images_in_files_of_their_own_are_known_by_their_content(tmp_path: Path) -> None:
    """The table, its fingerprint and the times of the files remain."""
    imagefolder(tmp_path / "pets", range(12))
    first = again(tmp_path, labels=False)
    assert as_seen(first.train.x) | as_seen(first.test.x) == {pixels(i) for i in range(12)}
    imagefolder(tmp_path / "pets", range(20, 32))
    second = again(tmp_path, labels=False)
    assert as_seen(second.train.x) | as_seen(second.test.x) == {pixels(i) for i in range(20, 32)}


def test_a_missing_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [stored(i, tmp_path) for i in range(8)]
    rows[3] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    monkeypatch.setattr(HuggingFace, "_splits", lambda self: {"train": with_images(rows)})
    says = r"split train: image of row 3 is in a file that does not exist, .*gone.png \(1 of 8 rows"
    with pytest.raises(UserError, match=says):
        again(tmp_path, labels=False)


def test_arrow_files_replaced_under_the_same_fingerprint_are_noticed(tmp_path: Path) -> None:
    place = tmp_path / "pets"
    kept = {}
    for first in (0, 20):
        rows = [stored(first + i, tmp_path) for i in range(12)]
        shutil.rmtree(place, ignore_errors=True)
        load(tmp_path / f"from{first}", {"train": with_images(rows)}, labels=False)
        kept[first] = tmp_path / f"from{first}" / "pets"
    shutil.copytree(kept[0], place)
    assert as_seen(again(tmp_path, labels=False).train.x) <= {pixels(i) for i in range(12)}
    arrow = "train/data-00000-of-00001.arrow"
    before = (place / arrow).stat()
    shutil.copyfile(kept[20] / arrow, place / arrow)
    os.utime(place / arrow, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (place / arrow).stat().st_size == before.st_size
    assert as_seen(again(tmp_path, labels=False).train.x) <= {pixels(i) for i in range(20, 32)}
