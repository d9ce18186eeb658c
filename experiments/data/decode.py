"""Image files (or images of Hugging Face) to uint8 arrays of one size, in one documented way."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.data.base import Dataset
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.data.known import check_name, declared
from fewstep.experiments.data.memmap_cache import SplitSource, cached_splits
from fewstep.experiments.store.json_files import Json
from fewstep.registry import bookkeeping

T = TypeVar("T")
BLOCK = 256  # images decoded before they are written
FILTERS = {name: Image.Resampling[name.upper()] for name in ("bicubic", "lanczos", "box")}
RESIZES = ("adm", *FILTERS, "none")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")  # MPO is opened as JPEG
POINTERS = (b"version https://git-lfs", b"/annex/objects/")  # texts in place of unfetched files
BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED = 258, 339, 2  # TIFF's tags, and a value of the second


def open_image(source: str | io.BytesIO) -> Image.Image:
    """``source``, of which only the header is read; ``ValueError`` for none of ``FORMATS``."""
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if isinstance(source, io.BytesIO):
            start = source.getvalue()[:64]
        else:
            with open(source, "rb") as file:
                start = file.read(64)
    if start.startswith(POINTERS):
        raise ValueError("a pointer of Git LFS or git-annex, whose file is to be fetched first")
    raise ValueError(f"not recognised as {', '.join(FORMATS)}")


def sample_bits(image: Image.Image) -> int:
    """Bits of one sample in the file, 8 for less: where it has more, PIL drops or clips some.

    Of an image that is not decoded yet. PIL gives 16-bit colours the mode of 8-bit ones: only the
    header tells.
    """
    if image.format == "TIFF":
        return max(8, *image.tag_v2.get(BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    if image.format in ("PNG", "PPM"):
        for _, _, _, given in image.tile:  # type: ignore[attr-defined]
            for value in given if isinstance(given, tuple) else (given,):
                if ";16" in str(value) or (isinstance(value, int) and value > 255):
                    return 16  # a raw mode such as RGB;16B, or the largest value of a PPM
    if image.mode in ("I", "F"):
        return 32
    return 16 if image.mode.startswith("I;16") else 8


def sample_formats(image: Image.Image) -> tuple[int, ...]:
    """What the samples of a TIFF are; () for other files. PIL takes signed ones for unsigned."""
    return image.tag_v2.get(SAMPLE_FORMAT, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ImageDecoder:
    """Any image -> uint8 (C, size, size), C = 3, or 1 where ``grey``.

    Grey levels are PIL's (ITU-R 601 luma); transparency is dropped, and the orientation a camera
    has noted is not applied, as in ADM. ``resize``:

    - ``adm``: as ADM (Dhariwal & Nichol 2021, guided_diffusion/image_datasets.py), and after it DiT
      and SiT: halved by box filter while the short side is at least twice ``size``, then bicubic
      to a short side of ``size``, then the central square.
    - ``bicubic``, ``lanczos``, ``box``: the central square, then one antialiased resize by PIL
      (EDM's dataset tool with center-crop: lanczos).
    - ``none``: an image of another size is refused.
    """

    size: int
    grey: bool
    resize: str

    def __post_init__(self) -> None:
        check_range("data.size", self.size, 1, 4096)
        check_choice("data.resize", self.resize, RESIZES)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """``image``, decoded; raises ``ValueError`` where it cannot become one of these."""
        if (bits := sample_bits(image)) > 8:
            raise ValueError(f"{bits} bits a sample, expected 8")
        if image.mode == "LAB" or SIGNED in sample_formats(image):
            raise ValueError(f"samples are {'LAB' if image.mode == 'LAB' else 'signed'}, expected "
                             f"grey levels or RGB")  # fmt: skip
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"{frames} frames, expected 1")  # an MPO has previews of its first
        image, side = image.convert("L" if self.grey else "RGB"), self.size
        if self.resize == "none":
            if image.size != (side, side):
                raise ValueError(f"{image.width}x{image.height} pixels, expected {side}x{side}")
        elif self.resize == "adm":
            image = self._adm(image)
        else:
            image = centre(image, min(image.size)).resize((side, side), FILTERS[self.resize])
        array = np.asarray(image, dtype=np.uint8).reshape(side, side, -1)
        return np.ascontiguousarray(array.transpose(2, 0, 1))

    def _adm(self, image: Image.Image) -> Image.Image:
        while min(image.size) >= 2 * self.size:
            halved = (image.width // 2, image.height // 2)
            image = image.resize(halved, Image.Resampling.BOX)
        scale = self.size / min(image.size)
        scaled = (round(image.width * scale), round(image.height * scale))
        return centre(image.resize(scaled, Image.Resampling.BICUBIC), self.size)


def centre(image: Image.Image, side: int) -> Image.Image:
    """The central square; the odd pixel goes to the right and the bottom."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode_images(
    items: Sequence[T],
    opened: Callable[[T], Image.Image],
    called: Callable[[T], str],
    decoder: ImageDecoder,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Blocks of decoded ``items``, in their order, by as many threads as there are cores.

    ``called`` says which image it is, where one is bad.
    """

    def one(item: T) -> NDArray[np.uint8]:
        try:
            with opened(item) as image:
                return decoder(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{called(item)} is not a readable image ({reason})") from None

    with ThreadPoolExecutor(cores()) as pool:  # PIL decodes and resizes outside of Python's lock
        rest = iter(items)
        while block := list(islice(rest, BLOCK)):
            yield {"x": np.stack(list(pool.map(one, block)))}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


EncodedSplit = tuple[
    Sequence[Any], Callable[[Any], Image.Image], Callable[[Any], str], NDArray[np.int64] | None
]
"""Items, what opens one, what it is called in an error, and the classes of all or None."""


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """What data sets share whose images are decoded once and kept in the cache.

    Attributes:
        root: folder that the data lies in.
        size, grey, resize: see ``ImageDecoder``. labels: whether to take classes.
        test_share: how much is held out, class by class, where there is no test split.
        cache: where decoded images are kept; default FEWSTEP_CACHE, else ~/.cache/fewstep.
        expected: the shapes, as "3x64x64 classes=1000 train=1281167 test=50000": other images are
            refused, and --plan works before they are there.
        is_: written data.is, the public data set that these images are ("imagenet_64"): others are
            refused, and the report finds the numbers that papers have for it.
    """

    suggested_backbone: ClassVar[str] = "unet_32"

    root: str = "data"
    size: int = 32
    grey: bool = False
    resize: str = "adm"
    labels: bool = True
    test_share: float = 0.1
    cache: str = bookkeeping("")
    expected: str = bookkeeping("")
    is_: str = bookkeeping("")

    def __post_init__(self) -> None:
        check_name(self.is_)
        _ = self.decoder, self.expected and Expected.parse(self.expected)
        check_range("data.test_share", self.test_share, 0, 0.9, open_low=True)

    def placeholder(self) -> Dataset | None:
        if not self.expected:
            return None
        return Expected.parse(self.expected).placeholder("images", torch.uint8)

    @property
    def decoder(self) -> ImageDecoder:
        return ImageDecoder(self.size, self.grey, self.resize)

    def held_out(self, images: int, where: object) -> int:
        """How many of so many ``images`` are held out; ``UserError`` for none, or all."""
        count, share = round(self.test_share * images), f"data.test_share={self.test_share:g}"
        if not 0 < count < images:
            left = "none would be left for training or testing"
            raise UserError(f"{where} has {images} images, of which {left} with {share}")
        return count

    def cached(
        self,
        name: str,
        identity: Json,
        classes: int,
        make: Callable[[str], EncodedSplit],
        class_names: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Dataset:
        """The data set of the splits that ``make`` gives by name, decoded only if not kept yet.

        ``class_names`` and ``notes``: as in ``Dataset``; they are not kept.
        """

        def source(split: str) -> SplitSource:
            items, opened, called, y = make(split)
            return SplitSource(len(items), decode_images(items, opened, called, self.decoder), y)

        def sources() -> dict[str, SplitSource]:
            return {split: source(split) for split in ("train", "test")}

        identity = {"format": 1, **identity, "decoder": [self.size, self.grey, self.resize]}
        train, test = cached_splits(self.cache, name, identity, sources)
        dataset = Dataset(name, train, test, classes, class_names, notes)
        dataset = declared(dataset, self.is_)
        return Expected.parse(self.expected).check(dataset) if self.expected else dataset
