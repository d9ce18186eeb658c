"""Images of more than 8 bits a sample: all are refused by name, those of 8 bits are not.

The files are written here, byte by byte: what opens them is what is tested.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.image_folders import load
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fewstep.errors import UserError
from fewstep.experiments.data.decode import ImageDecoder, open_image
from fewstep.experiments.data.huggingface import HuggingFace

SIZE, VALUE = 8, 4000  # 0x0fa0: as 8 bits it would be 15


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))


def samples(bits: int, channels: int, order: str) -> bytes:
    """All of one value."""
    if bits == 12:
        return int("fa0" * 2, 16).to_bytes(3, "big") * (SIZE * SIZE * channels // 2)
    kinds = {8: "B", 16: "H", 32: "I"}
    return struct.pack(f"{order}{kinds[bits]}", VALUE % 2**bits) * (SIZE * SIZE * channels)


def png(channels: int, bits: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, bits, colour, 0, 0, 0))
    raw, row = samples(bits, channels, ">"), SIZE * channels * bits // 8
    rows = b"".join(b"\0" + raw[i : i + row] for i in range(0, len(raw), row))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pnm(magic: str, largest: int) -> bytes:
    channels, bits = (3 if magic in ("P3", "P6") else 1), 16 if largest > 255 else 8
    header = f"{magic} {SIZE} {SIZE} {largest}\n".encode()
    if magic in ("P2", "P3"):
        return header + f"{VALUE % 2**bits % (largest + 1)} ".encode() * (SIZE * SIZE * channels)
    return header + samples(bits, channels, ">")


def pfm() -> bytes:
    return f"Pf {SIZE} {SIZE} -1.0\n".encode() + struct.pack("<f", 0.5) * SIZE * SIZE


def tiff(channels: int, bits: int, order: str, deflate: bool = False, kind: int = 1) -> bytes:
    """One strip; ``kind`` of samples: 1 unsigned, 3 floats."""
    raw = samples(bits, channels, order)
    raw = zlib.compress(raw) if deflate else raw
    photometric = 5 if channels == 4 else 2 if channels == 3 else 1  # CMYK, RGB, grey
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, 4, [SIZE]), (257, 4, [SIZE]), (258, 3, [bits] * channels),
        (259, 3, [8 if deflate else 1]), (262, 3, [photometric]), (273, 4, [8]),
        (277, 3, [channels]), (278, 4, [SIZE]), (279, 4, [len(raw)]),
        *([(338, 3, [2])] if channels == 2 else []), (339, 3, [kind] * channels),
    ]  # fmt: skip
    begin = 8 + len(raw) + len(raw) % 2
    entries, beyond = b"", b""
    for tag, type_, values in tags:
        data = struct.pack(f"{order}{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(data) > 4:
            offset = begin + 2 + 12 * len(tags) + 4 + len(beyond)
            beyond, data = beyond + data, struct.pack(f"{order}I", offset)
        entries += struct.pack(f"{order}HHI", tag, type_, len(values)) + data.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = mark + struct.pack(f"{order}HI", 42, begin)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return header + raw.ljust(begin - 8, b"\0") + directory + beyond


DEEP = {
    **{f"{n}{i}.png": png(i, 16) for i, n in enumerate(("grey", "grey-alpha", "rgb", "rgba"), 1)},
    **{
        f"{magic}-{largest}.ppm": pnm(magic, largest)
        for magic in ("P2", "P3", "P5", "P6")
        for largest in (256, 1023, 4095, 65535)
    },
    **{
        f"{channels}{order}{'zip' * deflate}.tif": tiff(channels, 16, order, deflate)
        for channels in (1, 3, 4)
        for order in "<>"
        for deflate in (False, True)
    },
}
DEEPER = {
    "float.ppm": (pfm(), 32),
    "float.tif": (tiff(1, 32, "<", kind=3), 32),
    "whole.tif": (tiff(1, 32, "<"), 32),
    "twelve.tif": (tiff(1, 12, "<"), 12),
}
SHALLOW = {
    **{f"{i}.png": png(i, 8) for i in (1, 2, 3, 4)},
    **{f"{magic}.ppm": pnm(magic, 255) for magic in ("P2", "P3", "P5", "P6")},
    "P6-200.ppm": pnm("P6", 200),
    **{f"{channels}{order}.tif": tiff(channels, 8, order) for channels in (1, 3) for order in "<>"},
}
ALL = {**{name: (raw, 16) for name, raw in DEEP.items()}, **DEEPER}


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_more_than_8_bits_are_refused(name: str, grey: bool) -> None:
    raw, bits = ALL[name]
    with pytest.raises(ValueError, match=f"^{bits} bits a sample, expected 8$"):
        ImageDecoder(SIZE, grey, "adm")(open_image(io.BytesIO(raw)))


@pytest.mark.parametrize("name", SHALLOW)
def test_8_bits_are_taken(name: str) -> None:
    """The same files, but for their depth: it is the depth that is refused."""
    made = ImageDecoder(SIZE, False, "adm")(open_image(io.BytesIO(SHALLOW[name])))
    assert made.shape == (3, SIZE, SIZE)
    assert np.unique(made).size == 1
    assert made[0, 0, 0] in (VALUE % 256, round(VALUE % 256 * 255 / 200))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["BMP", "PNG", "GIF", "TIFF", "WEBP", "PPM"])
def test_what_pil_writes_of_8_bits_is_taken(kind: str, mode: str) -> None:
    """BMP's raw mode BGR;16 is of 16 bits a pixel."""
    out = io.BytesIO()
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).convert(mode)
    image.convert("RGB" if mode == "P" and kind in ("PPM", "WEBP") else mode).save(out, kind)
    made = ImageDecoder(SIZE, False, "adm")(open_image(io.BytesIO(out.getvalue())))
    assert made.min() == 255


def test_a_bitmap_of_16_bits_a_pixel_is_taken() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, SIZE, SIZE, 1, 16, 0, SIZE * SIZE * 2, 0, 0, 0, 0)
    raw = b"BM" + struct.pack("<IHHI", 54 + SIZE * SIZE * 2, 0, 0, 54) + header
    image = open_image(io.BytesIO(raw + b"\xff\x7f" * SIZE * SIZE))  # 5 bits a sample
    assert ImageDecoder(SIZE, False, "adm")(image).min() == 255


def test_samples_that_mean_something_else_are_refused() -> None:
    """PIL takes signed samples of 8 bits for unsigned ones, and LAB for three channels."""
    for mode, tags, says in (("LAB", {}, "LAB"), ("L", {339: 2}, "signed"), ("L", {339: 1}, None)):
        out, directory = io.BytesIO(), ImageFileDirectory_v2()
        for tag, value in tags.items():
            directory[tag] = value
        Image.new(mode, (SIZE, SIZE)).save(out, "TIFF", tiffinfo=directory)
        refused = pytest.raises(ValueError, match=f"samples are {says}, expected grey levels")
        with refused if says else contextlib.nullcontext():
            ImageDecoder(SIZE, False, "adm")(open_image(io.BytesIO(out.getvalue())))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_of_several_frames_none_is_dropped_in_silence(kind: str) -> None:
    """An animation, or a scan of several pages; the further frames of an MPO are previews."""
    frames = [Image.new("RGB", (SIZE, SIZE), (60 * i, 0, 0)) for i in range(3)]
    for more, says in ((frames[1:], "3 frames, expected 1"), ([], None)):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=more)
        image = open_image(io.BytesIO(out.getvalue()))
        refused = pytest.raises(ValueError, match=f"^{says}$")
        with refused if says else contextlib.nullcontext():
            ImageDecoder(SIZE, False, "adm")(image)
    out = io.BytesIO()
    frames[0].save(out, "MPO", save_all=True, append_images=frames[1:])
    assert ImageDecoder(SIZE, False, "adm")(open_image(io.BytesIO(out.getvalue()))).shape[0] == 3


@pytest.mark.parametrize("name", ["rgb3.png", "P6-65535.ppm", "3<.tif"])
def test_they_are_refused_by_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / "x"
    root.mkdir()
    for i in range(9):
        (root / f"{i}.png").write_bytes(png(3, 8))
    (root / name).write_bytes(DEEP[name])
    with pytest.raises(UserError, match=f"{root / name} is not .* \\(16 bits a sample, expected 8"):
        load(root)
    datasets: Any = pytest.importorskip("datasets", reason="pip install 'fewstep[huggingface]'")
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"bytes": raw, "path": None} for raw in [png(3, 8)] * 9 + [DEEP[name]]]
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(tmp_path / "hf")
    with pytest.raises(UserError, match=r"image of row 9 of train is not .* \(16 bits a sample"):
        HuggingFace(root=str(tmp_path), dataset="hf", size=8, labels=False).load()
