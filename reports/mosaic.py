"""Many images as one picture, each pixel enlarged to a whole number of pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels an image gets, at least


def mosaic(images: NDArray[Any], columns: int | None = None) -> NDArray[Any]:
    """uint8 (n, C, H, W), C of 1 or 3 -> uint8 (H', W', 3), row by row on white, 1 cell apart."""
    n, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, SIDE // max(height, width))
    gap = max(1, scale // 2)
    tile_h, tile_w = height * scale + gap, width * scale + gap
    canvas = np.full((rows * tile_h + gap, columns * tile_w + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        pixels = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
        big = pixels.repeat(scale, 0).repeat(scale, 1)
        y, x = gap + i // columns * tile_h, gap + i % columns * tile_w
        canvas[y : y + height * scale, x : x + width * scale] = big
    return canvas


def write_mosaic(images: NDArray[Any], path: Path) -> None:
    """Write ``mosaic(images)`` as a picture."""
    from PIL import Image

    Image.fromarray(mosaic(images)).save(path)
