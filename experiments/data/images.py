"""Image files (or images of Hugging Face) to uint8 arrays of one size, in one documented way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.errors import UserError, check_choice, check_range

T = TypeVar("T")
BLOCK = 256  # images decoded before they are written
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
RESIZES = ("adm", *FILTERS, "none")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL would clip them to 8 bits, unasked


@dataclass(frozen=True)
class Decoder:
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

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1 if self.grey else 3, self.size, self.size)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Raises:
        ValueError: an image that cannot become one of these.
        """
        if image.mode in DEEP:
            raise ValueError(f"pixels of mode {image.mode}, expected 8 bits a channel")
        image = image.convert("L" if self.grey else "RGB")
        size = (self.size, self.size)
        if self.resize == "none":
            if image.size != size:
                raise ValueError(
                    f"{image.width}x{image.height} pixels, expected {size[0]}x{size[1]}"
                )
        elif self.resize == "adm":
            image = self._adm(image)
        else:
            side = min(image.size)
            image = centre(image, side).resize(size, FILTERS[self.resize])
        array = np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.shape[0])
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


def decoded(
    items: Sequence[T],
    opened: Callable[[T], Image.Image],
    called: Callable[[T], str],
    decoder: Decoder,
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
            raise UserError(f"{called(item)} is no image that can be read ({reason})") from None

    with ThreadPoolExecutor(cores()) as pool:  # PIL decodes and resizes outside of Python's lock
        rest = iter(items)
        while block := list(islice(rest, BLOCK)):
            yield {"x": np.stack(list(pool.map(one, block)))}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
