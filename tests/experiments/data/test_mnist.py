"""MNIST and Fashion-MNIST: files that are well formed, damaged, or another one's."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.real_data import real_data

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.mnist import FILES, MNIST, FashionMNIST, load_idx

FASHION = ("fashion-mnist", "fashion_mnist", ".")


def small(root: Path, name: str = "mnist", folders: tuple[str, ...] = ("mnist", ".")) -> Dataset:
    """As the data set is loaded, but for the hashes of the real files."""
    return load_idx(name, str(root), folders)


def write_idx(
    folder: Path,
    n: int = 3,
    *,
    zipped: bool = False,
    change: Callable[[dict[str, bytes]], None] = lambda files: None,
) -> Path:
    """Four small, valid idx files of 2x3 pixels in ``folder``, then changed by ``change``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part in ("train", "t10k"):
        pixels = bytes(range(6 * n))
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, n, 2, 3) + pixels
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, n) + bytes(range(n))
    change(files)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["mnist", "."])
def test_idx_reads_what_was_written(tmp_path: Path, folder: str, zipped: bool) -> None:
    write_idx(tmp_path / folder, zipped=zipped)
    data = small(tmp_path)
    assert data.shape == (1, 2, 3)
    assert data.train.x[1].tolist() == [[[6, 7, 8], [9, 10, 11]]]
    assert data.test.y is not None
    assert data.test.y.tolist() == [0, 1, 2]


@pytest.mark.parametrize("folder", ["fashion-mnist", "fashion_mnist"])
def test_fashion_mnist_has_its_own_folder(tmp_path: Path, folder: str) -> None:
    write_idx(tmp_path / "mnist", n=2)
    write_idx(tmp_path / folder, n=3)
    assert len(small(tmp_path, "fashion_mnist", FASHION).train) == 3
    assert len(small(tmp_path).train) == 2


def test_missing_files_are_named_with_the_places_looked_at(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", change=lambda files: files.pop(FILES[3]))
    with pytest.raises(UserError) as caught:
        small(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "mnist") in message
    assert all(file in message for file in FILES)
    assert "\n" not in message


def replace(name: str, edit: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({name: edit(files[name])})


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        (FILES[0], lambda b: b"\0\0\x08\x01" + b[4:], "magic number 0x00000801, expected"),
        (FILES[1], lambda b: b"\0\0\x08\x03" + b[4:], "magic number 0x00000803, expected"),
        (FILES[0], lambda b: b[:-1], "has 33 bytes, expected 34"),
        (FILES[0], lambda b: b + b"\0", "has 35 bytes, expected 34"),
        (FILES[0], lambda b: b[:10], "truncated: 10 bytes"),
        (FILES[0], lambda b: b"", "truncated: 0 bytes"),
        (FILES[0], lambda b: b[:4] + struct.pack(">I", 2**32 - 1) + b[8:], "expected 25769803786"),
        (FILES[0], lambda b: struct.pack(">4I", 0x803, 0, 2, 3), "has 16 bytes"),
        (FILES[3], lambda b: struct.pack(">2I", 0x801, 2) + b"\0\1", "3 images, but .* 2 labels"),
        (FILES[3], lambda b: b[:-1] + b"\x0a", r"label 10, expected 0\.\.9"),
    ],
)
def test_damaged_files_are_refused_by_name(
    tmp_path: Path, name: str, edit: Callable[[bytes], bytes], says: str
) -> None:
    write_idx(tmp_path, change=replace(name, edit))
    with pytest.raises(UserError, match=says) as caught:
        small(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda b: b"<html>not found</html>", "not a complete gzip"),
        (lambda b: b[: len(b) // 2], "not a complete gzip"),
        (lambda b: b[:20] + b"\xff\xff\xff" + b[23:], "gzip"),
    ],
)
def test_damaged_gzip_is_refused_by_name(
    tmp_path: Path, edit: Callable[[bytes], bytes], says: str
) -> None:
    path = write_idx(tmp_path, zipped=True) / f"{FILES[0]}.gz"
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(UserError, match=says) as caught:
        small(tmp_path)
    assert str(path) in str(caught.value)


MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize(
    ("name", "folder", "mean", "first", "train_counts"),
    [
        ("mnist", "mnist", 0.1307, [5, 0, 4, 1, 9], MNIST_COUNTS),
        ("fashion_mnist", "fashion-mnist", 0.2860, [9, 0, 0, 3, 0], [6000] * 10),
    ],
)
def test_real_files(
    name: str, folder: str, mean: float, first: list[int], train_counts: list[int]
) -> None:
    real = real_data(folder)
    data = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[name](root=str(real)).load()
    assert (data.name, data.shape, data.num_classes) == (name, (1, 28, 28), 10)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.x.double().mean() / 255 == pytest.approx(mean, abs=5e-5)
    assert data.train.y is not None
    assert data.train.y[:5].tolist() == first
    assert data.train.y.bincount().tolist() == train_counts


def test_another_file_than_the_published_one_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(UserError, match=f"{FILES[0]} is not mnist's {FILES[0]}: sha256 "):
        MNIST(root=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("place", "source", "says"),
    [
        ("t10k-images-idx3-ubyte", "mnist/train-images-idx3-ubyte", "it is mnist's train-i"),
        ("train-labels-idx1-ubyte", "fashion-mnist/train-labels-idx1-ubyte", "it is fashion"),
        (
            "t10k-images-idx3-ubyte",
            "fashion-mnist/t10k-images-idx3-ubyte",
            "it is fashion_mnist's t",
        ),
    ],
)
def test_real_files_in_the_place_of_others(
    tmp_path: Path, place: str, source: str, says: str
) -> None:
    real = real_data("mnist", "fashion-mnist")
    shutil.copytree(real / "mnist", tmp_path / "mnist")
    shutil.copy(real / f"{source}.gz", tmp_path / "mnist" / f"{place}.gz")
    with pytest.raises(UserError, match=says) as caught:
        MNIST(root=str(tmp_path)).load()
    assert f"{place}.gz" in str(caught.value)
