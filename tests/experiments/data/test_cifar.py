"""CIFAR-10: archives in the official layout, small ones, whole and damaged."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.real_data import real_data

from fewstep.errors import UserError
from fewstep.experiments.data import Dataset, DataShape, cifar, shape_of
from fewstep.experiments.data.cifar import BINARY, CIFAR10, PYTHON, load_cifar10, parse_python
from fewstep.experiments.data.safe_unpickle import NotPlain, load_plain

IMAGES = 20  # of a batch, where the real ones have 10,000
Files = dict[str, bytes]


def rows(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (20, 3072) and labels: two a class in the test batch (5), ten in all the others."""
    rng = np.random.default_rng(batch)
    labels = np.roll(np.arange(5 * IMAGES) % 10, 3)
    y = rng.permutation(10).repeat(2) if batch == 5 else np.sort(labels)[batch::5]
    if batch in (1, 2):  # no batch of its own is balanced
        y = np.where(y == batch - 1, 2 - batch, y)
    return rng.integers(0, 256, (IMAGES, 3072), dtype=np.uint8), y.astype(np.uint8)


def binary() -> Files:
    return {
        name: np.concatenate((y[:, None], x), axis=1).tobytes()
        for i, name in enumerate(BINARY)
        for x, y in [rows(i)]
    }


def python(protocol: int = 2) -> Files:
    """As Python 2 wrote them: its strings are bytes."""
    files = {}
    for i, name in enumerate(PYTHON):
        x, y = rows(i)
        label = b"testing batch 1 of 1" if i == 5 else f"training batch {i + 1} of 5".encode()
        batch = {b"batch_label": label, b"labels": y.tolist(), b"data": x, b"filenames": [b"a.png"]}
        files[name] = pickle.dumps(batch, protocol=protocol)
    return files


def pack(path: Path, files: Files, folder: str, mode: str) -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in {**files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def unpack(folder: Path, files: Files, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "cifar-10-binary.tar.gz": lambda p: pack(
        p / "cifar-10-binary.tar.gz", binary(), "cifar-10-batches-bin", "w:gz"
    ),
    "cifar10/cifar-10-binary.tar": lambda p: (
        (p / "cifar10").mkdir(),
        pack(p / "cifar10/cifar-10-binary.tar", binary(), "cifar-10-batches-bin", "w"),
    )[1],
    "cifar-10-python.tar.gz": lambda p: pack(
        p / "cifar-10-python.tar.gz", python(), "cifar-10-batches-py", "w:gz"
    ),
    "cifar-10-batches-bin": lambda p: unpack(p / "cifar-10-batches-bin", binary()),
    "cifar-10-batches-py": lambda p: unpack(p / "cifar-10-batches-py", python()),
    "cifar10, gzipped": lambda p: unpack(p / "cifar10", binary(), zipped=True),
    "the root itself": lambda p: unpack(p, python()),
}


def small(root: Path) -> Dataset:
    return load_cifar10(root, IMAGES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    data = small(tmp_path)
    assert (data.name, data.shape, data.num_classes) == ("cifar10", (3, 32, 32), 10)
    assert (len(data.train), len(data.test)) == (5 * IMAGES, IMAGES)
    x, y = rows(2)
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        image = data.train.x[2 * IMAGES + i].numpy()
        # planes of red, green and blue; in each, row by row
        assert image[1, 4, 7] == pixels[1024 + 4 * 32 + 7]
        assert np.array_equal(image[2], pixels[2048:].reshape(32, 32))
        assert int(data.train.y[2 * IMAGES + i]) == label
    assert np.array_equal(data.test.x.flatten(1).numpy(), rows(5)[0])


def test_without_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, python())
    whole = small(tmp_path)
    monkeypatch.setattr(cifar, "load_cifar10", lambda root: whole)
    data = CIFAR10(str(tmp_path), labels=False).load()
    assert data.is_ == "cifar10"
    assert (data.num_classes, data.train.y, data.test.y) == (0, None, None)
    assert data.train.x is whole.train.x
    for labels in (True, False):
        loaded = CIFAR10(str(tmp_path), labels=labels).load()
        shape = shape_of(CIFAR10("nowhere", labels=labels))
        assert shape == DataShape(loaded.shape, loaded.num_classes, 0, loaded.is_image)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_every_age(tmp_path: Path, protocol: int) -> None:
    unpack(tmp_path, python(protocol))
    assert small(tmp_path).train.sha256 == _binary_train(tmp_path / "other")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("labels", ["an array of int64", "a list of int64"])
def test_labels_as_other_programs_write_them(tmp_path: Path, protocol: int, labels: str) -> None:
    files = python(protocol)
    for name, content in files.items():
        batch = pickle.loads(content)
        y = np.asarray(batch[b"labels"], np.int64)
        batch[b"labels"] = y if labels == "an array of int64" else list(y)
        files[name] = pickle.dumps(batch, protocol=protocol)
    unpack(tmp_path, files)
    assert small(tmp_path).train.sha256 == _binary_train(tmp_path / "other")


def _binary_train(folder: Path) -> str:
    unpack(folder, binary())
    return small(folder).train.sha256


def test_the_real_one_has_60000_images(tmp_path: Path) -> None:
    unpack(tmp_path, binary())
    with pytest.raises(UserError, match="61460 bytes, expected 30730000"):
        CIFAR10(root=str(tmp_path)).load()


def test_nothing_there_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar10 not found: looked in .*cifar-10-binary\.tar\.gz"):
        small(tmp_path)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    """Half of one kind and half of the other are no whole of either."""
    unpack(tmp_path / "cifar10", {n: binary()[n] for n in BINARY[:3]})
    with pytest.raises(UserError, match=r"cifar10 has .*, but no \S+4\.bin, \S+5\.bin, test_\S+$"):
        small(tmp_path)
    unpack(tmp_path / "cifar10", {n: python()[n] for n in PYTHON[3:]})
    with pytest.raises(UserError) as caught:
        small(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'cifar10'} has data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, "
        "data_batch_4, data_batch_5, test_batch, but no data_batch_4.bin, data_batch_5.bin, "
        "test_batch.bin, or else data_batch_1, data_batch_2, data_batch_3"
    )
    unpack(tmp_path / "cifar-10-batches-py", python())  # a whole one elsewhere will do
    assert len(small(tmp_path).test) == IMAGES


HTML = b"<!DOCTYPE html><html>not found</html>"
B, T = "data_batch_3.bin", "test_batch.bin"
DAMAGED: dict[str, tuple[str, Callable[[Files], object], str]] = {
    "truncated": (B, lambda f: f.update({B: f[B][:-1]}), "61459 bytes, expected 61460"),
    "longer": (B, lambda f: f.update({B: f[B] + b"\0"}), "61461 bytes"),
    "html": (B, lambda f: f.update({B: HTML}), "begins with b'<!DOCTYPE html>'"),
    "empty": (B, lambda f: f.update({B: b""}), "0 bytes"),
    "twice": (B, lambda f: f.update({B: f["data_batch_1.bin"]}), "the same as data_batch_1.bin"),
    "test as train": (T, lambda f: f.update({B: f[T]}), f"the same as {B}"),
    "swapped": (
        "data_batch_1.bin to",
        lambda f: f.update({"data_batch_2.bin": f[T], T: f["data_batch_2.bin"]}),
        "expected 10 of each",
    ),
    "label": (B, lambda f: f.update({B: b"\x0a" + f[B][1:]}), r"label 10, expected 0\.\.9"),
    "missing": (B, lambda f: f.pop(B), f"but no {B}"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_batches_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    name, damage, says = DAMAGED[kind]
    files = binary()
    damage(files)
    unpack(tmp_path, files)
    with pytest.raises(UserError, match=says) as caught:
        small(tmp_path)
    assert name in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_test_batch_that_is_not_balanced(tmp_path: Path) -> None:
    files = binary()
    wrong = bytearray(files[T])
    wrong[0] = (wrong[0] + 1) % 10
    unpack(tmp_path, {**files, T: bytes(wrong)})
    with pytest.raises(UserError, match=rf"{T}: \d images of class \d, expected 2 of each"):
        small(tmp_path)


@pytest.mark.parametrize("damage", ["html", "truncated", "flipped", "no archive", "short"])
def test_damaged_archives_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    pack(path, binary(), "cifar-10-batches-bin", "w:gz")
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(
        {
            "html": HTML,
            "truncated": raw[:middle],
            "flipped": raw[:middle] + bytes(64) + raw[middle + 64 :],
            "no archive": gzip.compress(HTML),
            "short": raw[:5],
        }[damage]
    )
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz") as caught:
        small(tmp_path)
    assert "\n" not in str(caught.value)


def test_archives_that_lack_or_mix_batches(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    pack(path, {**binary(), **python()}, "x", "w:gz")
    with pytest.raises(UserError, match="holds binary and python batches"):
        small(tmp_path)
    pack(path, {k: v for k, v in python().items() if k != "test_batch"}, "x", "w:gz")
    with pytest.raises(UserError, match="holds no test_batch"):
        small(tmp_path)
    with tarfile.open(path, "w:gz") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("x/test_batch")
            tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(UserError, match="holds test_batch twice"):
        small(tmp_path)


class Evil:
    """What a pickle can do: call anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def changed(batch: dict[bytes, object]) -> bytes:
    return pickle.dumps({**pickle.loads(python()["data_batch_2"]), **batch}, protocol=2)


PICKLES: dict[str, tuple[bytes, str]] = {
    "a page": (HTML, "no batch of CIFAR-10"),
    "half of it": (python()["data_batch_2"][:5000], "no batch of CIFAR-10"),
    "a list": (pickle.dumps([1]), "holds a list, expected a dict"),
    "no labels": (pickle.dumps({"data": 1}), "no 'labels' .it has data."),
    "too few": (changed({b"data": rows(1)[0][:3]}), r"data uint8 \(3, 3072\)"),
    "labels too few": (changed({b"labels": [1, 2]}), "has labels"),
    "negative": (changed({b"labels": [-1] * IMAGES}), "has labels"),
    "large": (changed({b"labels": [300] * IMAGES}), "has label 255"),
    "floats": (
        changed({b"data": rows(1)[0].astype(float)}),
        r"data float64 \(20, 3072\), expected uint8",
    ),
    "another batch": (python()["data_batch_3"], "calls itself 'training batch 3 of 5'"),
    "the test batch": (python()["test_batch"], "calls itself 'testing batch 1 of 1'"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_damaged_pickles_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    raw, says = PICKLES[kind]
    files = python()
    if kind == "another batch":
        files["data_batch_3"] = files["data_batch_2"]
    if kind == "the test batch":
        files["test_batch"] = files["data_batch_2"]
    unpack(tmp_path, {**files, "data_batch_2": raw})
    with pytest.raises(UserError, match=says) as caught:
        small(tmp_path)
    assert "data_batch_2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    raw = pickle.dumps({"data": Evil(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(NotPlain, match=r"it asks for \w+\.mkdir"):
        load_plain(raw)
    assert not (tmp_path / "ran").exists()
    pickle.loads(raw)  # it does run where it may
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("labels", [[[1], [1, 2]], "knot"])
def test_lists_that_are_no_array_are_refused(labels: object) -> None:
    knot: list[object] = []
    knot.append(knot)
    raw = changed({b"labels": knot if labels == "knot" else labels})
    with pytest.raises(UserError, match=r"has labels|must be arrays"):
        parse_python(raw, "f", IMAGES)


def test_an_array_of_anything_but_numbers_is_refused() -> None:
    for odd in (np.zeros(2, "V8"), np.zeros(2, [("a", "u1")]), np.array([None]), np.array(["a"])):
        with pytest.raises(NotPlain, match="an array of"):
            load_plain(pickle.dumps(odd, protocol=2))


def test_python_2_wrote_its_strings_as_bytes() -> None:
    raw = pickle.dumps(rows(1)[0], protocol=2).replace(b"X\x02\x00\x00\x00u1", b"U\x02u1")
    assert b"U\x02u1" in raw
    assert np.array_equal(load_plain(raw), rows(1)[0])
    assert np.dtype("u1") == np.uint8


def test_labels_as_an_array_are_labels() -> None:
    batch = changed({b"labels": np.arange(IMAGES) % 10})
    assert parse_python(batch, "data_batch_2", IMAGES)[1].tolist() == [
        i % 10 for i in range(IMAGES)
    ]


def test_real_files() -> None:
    data = CIFAR10(root=str(real_data("cifar10"))).load()
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    # the published channel means
    means = data.train.x.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
