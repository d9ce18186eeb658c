"""Folders of images: layouts, the resize, what is held out, what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import as_seen, folder, load, picture, pixels
from PIL import Image

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.data.decode import RESIZES, ImageDecoder
from fewstep.experiments.data.folder import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEWSTEP_CACHE", str(folder))
    return folder


CLASSES = {f"{c}/{i}.png": 10 * j + i for j, c in enumerate("cab") for i in range(4 + 2 * j)}


def test_classes_are_sub_folders_in_alphabetical_order(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {f"train/{k}": v for k, v in CLASSES.items()})
    folder(root, {"test/a/x.png": 90, "test/c/y.PNG": 91, "test/c/deep/z.png": 92})
    (root / "train" / "a" / "notes.txt").write_text("passed over")
    (root / "train" / ".hidden").mkdir()
    data = load(root)
    assert (data.name, data.shape, data.num_classes) == ("pets", (3, 8, 8), 3)
    assert (len(data.train), len(data.test)) == (18, 3)
    for j, number in ((0, 2), (1, 0), (2, 1)):  # c, a, b
        seen = as_seen(data.train.x[data.train.y == number])
        assert seen == {pixels(10 * j + i) for i in range(4 + 2 * j)}
    assert as_seen(data.test.x[data.test.y == 2]) == {pixels(91), pixels(92)}
    assert data.train.y[:6].unique().numel() > 1  # not class by class


def test_a_flat_folder_has_no_classes_and_a_share_is_held_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "flat", {f"{i}.png": i for i in range(20)})
    data = load(root, test_share=0.25)
    assert (data.num_classes, data.train.y, len(data.train), len(data.test)) == (0, None, 15, 5)
    assert as_seen(data.train.x) | as_seen(data.test.x) == {pixels(i) for i in range(20)}
    again = load(root, test_share=0.25)
    assert (again.train.sha256, again.test.sha256) == (data.train.sha256, data.test.sha256)


def test_what_is_held_out_has_its_share_of_each_class(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": 100 * j + i for j, c in enumerate("ab") for i in range(20 + 20 * j)}
    data = load(folder(tmp_path / "x", files), test_share=0.1)
    assert data.test.y.bincount().tolist() == [2, 4]
    assert data.train.y.bincount().tolist() == [18, 36]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_the_other_names_of_a_test_split(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path / "x", {"train/0.png": 0, "train/1.png": 1, f"{name}/2.png": 2})
    assert as_seen(load(root).test.x) == {pixels(2)}


def test_without_labels_sub_folders_are_only_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {**CLASSES, "loose.png": 99})
    assert len(load(root, labels=False).train) == 17
    with pytest.raises(UserError, match=r"holds images \(loose.png, ...\) and sub-folders"):
        load(root)


# ------------------------------------------------------------------------------------ the resize


@pytest.mark.parametrize("resize", RESIZES)
def test_images_of_the_right_size_are_left_alone(resize: str) -> None:
    assert ImageDecoder(8, False, resize)(picture(3)).tobytes() == pixels(3)


@pytest.mark.parametrize("size", [(8, 12), (13, 8)])
def test_the_central_square_is_taken(size: tuple[int, int]) -> None:
    image = picture(0, size)
    array = np.asarray(image)
    top, left = (size[1] - 8) // 2, (size[0] - 8) // 2
    expected = array[top : top + 8, left : left + 8].transpose(2, 0, 1)
    for resize in ("adm", "lanczos", "bicubic", "box"):
        assert np.array_equal(ImageDecoder(8, False, resize)(image), expected)


def test_box_is_the_mean_of_what_it_replaces() -> None:
    image = picture(1, (16, 16))
    blocks = np.asarray(image).astype(float).reshape(8, 2, 8, 2, 3).mean((1, 3))
    made = ImageDecoder(8, False, "box")(image).transpose(1, 2, 0)
    assert np.abs(made - blocks).max() <= 1  # rounded twice: along rows, then columns
    # ADM halves by the same filter; at twice the size nothing is left for bicubic to do
    assert np.array_equal(ImageDecoder(8, False, "adm")(image).transpose(1, 2, 0), made)


def test_adm_halves_first_then_takes_bicubic() -> None:
    """35x50: halved once to 17x25, then to a short side of 12 and the centre."""
    image = picture(2, (35, 50))
    half = image.resize((17, 25), Image.Resampling.BOX)
    scaled = half.resize((12, 18), Image.Resampling.BICUBIC)  # round(25 * 12 / 17)
    expected = np.asarray(scaled)[3:15].transpose(2, 0, 1)
    assert np.array_equal(ImageDecoder(12, False, "adm")(image), expected)
    assert not np.array_equal(ImageDecoder(12, False, "bicubic")(image), expected)


@pytest.mark.parametrize("resize", ["adm", "bicubic", "lanczos", "box"])
def test_reduction_is_antialiased(resize: str) -> None:
    """Stripes finer than a pixel become their mean, not one of them."""
    array = np.zeros((64, 64), np.uint8)
    array[:, ::2] = 255
    made = ImageDecoder(8, True, resize)(Image.fromarray(array))
    assert np.abs(made.astype(float) - 127.5).max() < 16


def test_grey_levels_are_luma() -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert ImageDecoder(4, True, "none")(image).shape == (1, 4, 4)
    due = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert int(ImageDecoder(4, True, "none")(image)[0, 0, 0]) == round(due)
    grey = Image.new("L", (4, 4), 77)
    assert np.array_equal(ImageDecoder(4, False, "none")(grey), np.full((3, 4, 4), 77))


# -------------------------------------------------------------------------------- what is refused


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed, (64, 64)).save(out, "JPEG")
    return out.getvalue()


BAD = {
    "html.png": b"<html>not found</html>",
    "empty.png": b"",
    "half.jpg": jpeg(1)[:900],
    "header.jpg": jpeg(1)[:10],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_by_name(tmp_path: Path, cache: Path, name: str) -> None:
    root = folder(tmp_path / "x", {f"{i}.png": i for i in range(9)})
    (root / name).write_bytes(BAD[name])
    with pytest.raises(UserError, match=f"{root / name} is not a readable image") as caught:
        load(root, resize="adm")
    assert "\n" not in str(caught.value)
    assert not [*cache.glob("x-*/")]


def test_another_size_and_deep_pixels_are_refused_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {"a.png": 0, "b.png": 1})
    picture(2, (9, 8)).save(root / "c.png")
    with pytest.raises(UserError, match=r"c\.png .*9x8 pixels, expected 8x8"):
        load(root, test_share=0.3)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "c.png")
    with pytest.raises(UserError, match=r"c\.png .*16 bits a sample, expected 8"):
        load(root, test_share=0.3)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere \(data.folder='nowhere'"):
        load(tmp_path / "nowhere")
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"x holds no images \(choices: \.png"):
        load(tmp_path / "x")
    (tmp_path / "x" / "film.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"film\.mp4 is not an image"):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"test/d/0.png": 0}, "class 'd' is in the test images alone"),
        ({"test/0.png": 0}, "the train images have classes, the test images have none"),
    ],
)
def test_splits_that_do_not_go_together(tmp_path: Path, more: dict[str, int], says: str) -> None:
    root = folder(tmp_path / "x", {**{f"train/{k}": v for k, v in CLASSES.items()}, **more})
    with pytest.raises(UserError, match=says):
        load(root)


def test_an_empty_class_and_too_few_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", CLASSES)
    (root / "d").mkdir()
    with pytest.raises(UserError, match="d holds no images"):
        load(root)
    with pytest.raises(UserError, match="has 2 images, of which none would be left"):
        load(folder(tmp_path / "y", {"0.png": 0, "1.png": 1}))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"size": 0}, "data.size must be at least 1"),
        ({"resize": "bilinear"}, "unknown data.resize 'bilinear' .choices: adm, bicubic"),
        ({"test_share": 0.0}, "data.test_share must be greater than 0"),
        ({"splits": ("a", "b", "c")}, r"data.splits must be .*, got \[a,b,c\]"),
        ({"splits": ("auto", "test")}, r"data.splits must be .*, got \[auto,test\]"),
        ({"splits": (".",)}, r"data.splits must be .*, got \[\.\]"),
    ],
)
def test_settings_that_are_refused(setting: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ImageFolder(**setting)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- once kept


def test_what_is_part_of_a_runs_key(tmp_path: Path) -> None:
    def key(*settings: str) -> str:
        return compose(["data=image_folder", "training.steps=3", *settings]).key

    plain = key()
    assert key(f"data.cache={tmp_path}") == plain
    assert key(f"data.root={tmp_path}") == plain
    assert key("data.splits=[auto]") == plain
    changing = ("data.folder=other", "data.size=16", "data.resize=box", "data.test_share=0.2")
    splits = ("data.splits=[]", "data.splits=[train]", "data.splits=[train,val]")
    assert len({plain, *map(key, changing + splits)}) == 8
