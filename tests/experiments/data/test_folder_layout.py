"""Which folders are splits and which are classes; what can be read in two ways is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.image_folders import as_seen, folder, load, pixels

from fewstep.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))


def build(root: Path, *names: str, each: int = 4) -> Path:
    """Images in the folders ``names`` of ``root``, numbered on; a name with a suffix is one."""
    files = [n for name in names for n in
             ([name] if "." in name else [f"{name}/{i}.png" for i in range(each)])]  # fmt: skip
    return folder(root, {name: seed for seed, name in enumerate(files)})


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("train", "eval"),
        ("TRAIN", "Valid"),
        ("train", "Held-out"),
        ("Training", "dev"),
    ],
)
def test_usual_names_of_splits_are_recognised(tmp_path: Path, names: tuple[str, str]) -> None:
    classes = build(tmp_path / "x", *(f"{name}/{digit}" for name in names for digit in "01"))
    data = load(classes)
    assert (data.class_names, len(data.train), len(data.test)) == (("0", "1"), 8, 8)
    assert as_seen(data.test.x) == {pixels(seed) for seed in range(8, 16)}
    flat = load(build(tmp_path / "flat", *names))
    assert (flat.num_classes, flat.class_names, len(flat.train), len(flat.test)) == (0, (), 4, 4)
    assert load(classes, labels=False).num_classes == 0


NAMES = ("b/9.png", "b/10.png", "b/deep/1.png", "b/Deep/2.png", "b/de.ep/2.png", "B/3.png",
         "B/z.PNG", "a b/4.png", "a b/5.png", "a/x/y/6.bmp", "a/x.png", "a/x-1/7.png",
         "a/x/8.png")  # fmt: skip


@pytest.mark.parametrize(
    ("files", "labels", "train", "test"),
    [
        (NAMES, True, "688d7cf09f9be755", "6ab19f9cf3cb8833"),
        ([f"train/{n}" for n in NAMES], True, "688d7cf09f9be755", "6ab19f9cf3cb8833"),
        ([n.replace("/", "_") for n in NAMES], True, "9b665b7213dfa5ec", "9fdec2a7f028b103"),
        ([*NAMES, "loose.png", "Z.png"], False, "562cbd32d1add12c", "227f4b765b103805"),
        (
            [f"train/{n}" for n in NAMES] + [f"val/{n}" for n in NAMES[:6]],
            True,
            "6d68d1cb5c006df2",
            "fc4b5412f532f899",
        ),
    ],
)
def test_the_bytes_are_those_of_version_0_2(
    tmp_path: Path, files: list[str], labels: bool, train: str, test: str
) -> None:
    data = load(build(tmp_path / "x", *files), labels=labels, test_share=0.3)
    assert (data.train.sha256[:16], data.test.sha256[:16]) == (train, test)


# what is below the folder, and the words of the refusal
AMBIGUOUS = {
    "a class called train": (
        ("bicycle", "bus", "car", "train"),
        r"x holds train/ beside bicycle/, bus/, car/: are they splits or .*data.splits=\[train\]"
        r".*data.splits=\[\]",
    ),
    "a class called test": (
        ("a", "b", "test"),
        r"x holds test/ beside a/, b/: .*images into train/ beside test/.*data.splits=\[\]",
    ),
    "a test split alone": (("test/a", "test/b"), r"x holds test/: are they splits or"),
    "three splits": (
        ("train", "test", "val"),
        r"x holds train/, test/, val/: .*data.splits=\[train,test\] or \[train,val\]",
    ),
    "two spellings": (
        ("Train", "train"),
        r"x holds Train/, train/: .*data.splits=\[Train\] or \[train\]",
    ),
    "more than splits": (
        ("train", "test", "masks"),
        r"x holds train/, test/ beside masks/: .*data.splits=\[train,test\]",
    ),
    "images beside a split": (
        ("train", "0.png"),
        r"x holds train/ beside 0.png: .*data.splits=\[train\]",
    ),
    "years": (
        ("train2017", "val2017"),
        r"x holds train2017/, val2017/: .*data.splits=\[train2017,val2017\]",
    ),
    "sets": (
        ("trainset/a", "testset/a"),
        r"x holds trainset/, testset/: .*data.splits=\[trainset,testset\]",
    ),
    "short names": (("trn/a", "tst/a"), r"x holds trn/, tst/: .*data.splits=\[trn,tst\]"),
    "two letters": (("tr", "te"), r"x holds tr/, te/: .*data.splits=\[tr,te\]"),
    "unpaired images": (
        ("trainA", "trainB", "testA", "testB"),
        r"x holds trainA/, trainB/, testA/, ...: .*\[trainA,testA\] or \[trainA,testB\]",
    ),
    "a third one beside (STL-10)": (
        ("train_images", "test_images", "unlabeled_images"),
        r"x holds train_images/, test_images/ beside unlabeled_images/: .*"
        r"data.splits=\[train_images,test_images\].*data.splits=\[\]",
    ),
    "a third one beside (SVHN)": (
        ("train_32x32", "test_32x32", "extra_32x32"),
        r"data.splits=\[train_32x32,test_32x32\]",
    ),
    "abbreviated (nnU-Net)": (("imagesTr", "imagesTs"), r"data.splits=\[imagesTr,imagesTs\]"),
    "a numbered split": (("train", "test1"), r"x holds train/, test1/: .*\[train,test1\]"),
    "splits in classes": (
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        r"x holds cat/test/, a split inside of cat/\? .*data.folder=x/cat;.*data.splits=\[\]",
    ),
    "splits in a split": (
        ("train/train/a", "train/test/a"),
        r"train holds test/, a split inside of train/\?.*data.folder=x/train;",
    ),
    "splits in classes of a split": (
        ("train/cat/val", "train/cat/more", "train/dog", "test/cat"),
        r"train holds cat/val/, a split inside of train/cat/\?.*data.splits=\[train,test\]",
    ),
}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, case: str, labels: bool) -> None:
    names, says = AMBIGUOUS[case]
    root = build(tmp_path / "x", *names)
    with pytest.raises(UserError, match=says) as caught:
        load(root, labels=labels)
    assert "\n" not in str(caught.value)


def test_a_folder_around_the_classes_is_refused(tmp_path: Path) -> None:
    root = build(tmp_path / "x", "inner/deep/a", "inner/deep/b")
    with pytest.raises(UserError, match=r"x are .* sub-folder inner/deep/: .*=x/inner/deep; "):
        load(root)
    assert load(root / "inner/deep").class_names == ("a", "b")
    assert load(root, splits=()).class_names == ("inner",)
    assert load(root, labels=False).num_classes == 0
    for part in ("train", "test"):
        build(tmp_path / "y", f"{part}/inner/a", f"{part}/inner/b")
    with pytest.raises(UserError, match=r"train are .*: .*set data.splits=\[train/inner\]"):
        load(tmp_path / "y")
    assert load(tmp_path / "y", splits=("train", "test")).class_names == ("inner",)
    data = load(tmp_path / "y", splits=("train/inner", "test/inner"))
    assert (data.class_names, len(data.train), len(data.test)) == (("a", "b"), 8, 8)


def test_folds_that_are_taken_for_classes_are_told(tmp_path: Path) -> None:
    names = [f"fold{i}/{name}" for i in (1, 2, 3) for name in ("cat", "dog")]
    data = load(build(tmp_path / "x", *names))
    assert data.class_names == ("fold1", "fold2", "fold3")
    (note,) = data.notes
    assert "classes fold1, fold2, fold3 all hold the folders cat, dog: if those are" in note
    assert load(tmp_path / "x", splits=()).notes == ()
    assert load(build(tmp_path / "y", "a/b", "a/c", "d/b", "d/e")).notes == ()


def test_one_class_with_images_of_its_own_is_one_class(tmp_path: Path) -> None:
    assert load(build(tmp_path / "x", "a", "a/b", "a/c")).class_names == ("a",)
    assert load(build(tmp_path / "y", "a/b", each=6)).class_names == ("a",)


def test_a_class_of_a_split_may_be_called_train(tmp_path: Path) -> None:
    names = [f"{part}/{name}" for part in ("train", "val") for name in ("bus", "car", "train")]
    assert load(build(tmp_path / "x", *names)).class_names == ("bus", "car", "train")


def test_the_setting_names_the_splits(tmp_path: Path) -> None:
    root = build(tmp_path / "x", "train/a", "train/b", "test/a", "test/b", "val/a", "val/b")
    data = load(root, splits=("train", "val"))
    assert as_seen(data.train.x) == {pixels(seed) for seed in range(8)}
    assert as_seen(data.test.x) == {pixels(seed) for seed in range(16, 24)}
    assert data.notes == ("skipped 1 item that data.splits does not name (test)",)
    alone = load(root, splits=("test",), test_share=0.25)
    seen = as_seen(alone.train.x) | as_seen(alone.test.x)
    assert seen == {pixels(seed) for seed in range(8, 16)}
    assert load(root, splits=()).class_names == ("test", "train", "val")


def test_splits_that_the_setting_cannot_name(tmp_path: Path) -> None:
    root = build(tmp_path / "x", "train/a", "train/b", "test/a", "test/b", "val/a", "val/b")
    says = r"unknown folder 'vall' of data.splits .* did you mean 'val'\? \(choices: test, train"
    with pytest.raises(UserError, match=says):
        load(root, splits=("train", "vall"))
    for other in ("train", "./train", "train/a", "../x"):
        with pytest.raises(UserError, match=r"train and .* of .*x have common images"):
            load(root, splits=("train", other))


def test_folders_without_images_are_no_splits_and_no_secret(tmp_path: Path) -> None:
    root = build(tmp_path / "x", "train/a", "train/b", "test/a", "test/b")
    for name in ("Annotations", "val", "docs"):
        (root / name).mkdir()
        (root / name / "objects.mat").write_bytes(b"")
    (root / "imagenet.mat").write_bytes(b"")
    data = load(root)
    assert (len(data.train), len(data.test)) == (8, 8)
    assert data.notes == (
        "skipped 3 folders without images (Annotations, ...)",
        "skipped 4 files beside the splits (Annotations/objects.mat, ...)",
    )
    (root / "train" / "a" / "objects.mat").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/a/objects.mat is not an image"):
        load(root)


def test_an_empty_test_split_is_refused(tmp_path: Path) -> None:
    root = build(tmp_path / "x", "train/a", "train/b")
    (root / "Test").mkdir()
    with pytest.raises(UserError, match=r"x/Test holds no images"):
        load(root)
    assert len(load(root, splits=("train",)).train) == 7
