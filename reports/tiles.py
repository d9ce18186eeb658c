"""Samples as small pictures for the page: pixel for pixel, or points drawn as SVG."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fewstep.reports.grid import Samples, bounds_of

SIDE = 64  # pixels an image is shown in, at most
POINTS = 400


def tiles(samples: Samples) -> dict[tuple[str, int], Markup]:
    """An <img> or <svg> for each (method, steps)."""
    clouds = [a for a in samples.values() if a.ndim == 2]
    window = bounds_of([np.asarray(cloud, dtype=np.float64) for cloud in clouds])
    return {
        place: _points(array, window) if array.ndim == 2 else _images(array)
        for place, array in samples.items()
    }


def _images(array: NDArray[Any]) -> Markup:
    """4 x 4 small images, 2 x 2 larger ones; those beyond ``SIDE`` are shrunk."""
    from PIL import Image

    _, _, height, width = array.shape
    columns = 4 if max(height, width) <= 16 else 2
    shrink = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    gap = max(1, size[0] // 16)
    shape = [columns * (s + gap) - gap for s in size]
    canvas = Image.new("RGBA", (shape[0], shape[1]), (0, 0, 0, 0))
    for i, pixels in enumerate(array[: columns**2]):
        rgb = np.ascontiguousarray(np.broadcast_to(pixels.transpose(1, 2, 0), (height, width, 3)))
        image = Image.fromarray(rgb)
        if shrink < 1:
            image = image.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(image, ((i % columns) * (size[0] + gap), (i // columns) * (size[1] + gap)))
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    scale = max(1, round(104 / shape[0]))
    return Markup(
        f'<img alt="" src="data:image/png;base64,{data}" width="{scale * shape[0]}" '
        f'height="{scale * shape[1]}">'
    )


def _points(array: NDArray[Any], window: tuple[float, ...]) -> Markup:
    x0, x1, y0, y1 = window
    dots = []
    for x, y in np.asarray(array[:POINTS], dtype=np.float64):
        px, py = 200 * (x - x0) / (x1 - x0), 200 * (1 - (y - y0) / (y1 - y0))
        if math.isfinite(px + py) and 0 <= px <= 200 and 0 <= py <= 200:
            dots.append(f"M{px:.0f} {py:.0f}h0")
    return Markup(f'<svg class="cloud" viewBox="0 0 200 200"><path d="{"".join(dots)}"/></svg>')
