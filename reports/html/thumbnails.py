"""Samples as small pictures for the page: pixel for pixel, or points drawn as SVG."""

import base64
import io
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fewstep.analysis.summary_types import Samples
from fewstep.reports.figures.image_grid import bounds_of, side_by_side

SIDE = 64  # pixels an image is shown in, at most
POINTS = 400


def tiles(samples: Samples) -> dict[tuple[str, int], Markup]:
    """An <img> or <svg> for each (method, steps)."""
    window = bounds_of(samples.values())
    return {
        key: _points(array, window) if array.ndim == 2 else _images(array)
        for key, array in samples.items()
    }


def _images(array: NDArray[Any]) -> Markup:
    """4 x 4 small images, 2 x 2 larger ones; those beyond ``SIDE`` are shrunk."""
    from PIL import Image

    _, _, height, width = array.shape
    columns = 4 if max(height, width) <= 16 else 2
    shrink = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    images = np.full((min(len(array), columns**2), 4, height, width), 255, np.uint8)  # RGBA
    images[:, :3] = array[: len(images)]
    if shrink < 1:
        pictures = (Image.fromarray(i.transpose(1, 2, 0)) for i in images)
        small = [np.asarray(p.resize(size, Image.Resampling.LANCZOS)) for p in pictures]
        images = np.stack(small).transpose(0, 3, 1, 2)
    grid = side_by_side(images, columns, columns, max(1, size[0] // 16), fill=0)  # transparent
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    scale = max(1, round(104 / grid.shape[1]))
    return Markup(
        f'<img alt="" src="data:image/png;base64,{data}" width="{scale * grid.shape[1]}" '
        f'height="{scale * grid.shape[0]}">'
    )


def _points(array: NDArray[Any], window: tuple[float, ...]) -> Markup:
    x0, x1, y0, y1 = window
    shares = (np.asarray(array[:POINTS], dtype=np.float64) - (x0, y0)) / (x1 - x0, y1 - y0)
    inside = shares[((shares >= 0) & (shares <= 1)).all(axis=1)]  # nan is not
    dots = "".join(f"M{200 * x:.0f} {200 * (1 - y):.0f}h0" for x, y in inside)
    return Markup(f'<svg class="cloud" viewBox="0 0 200 200"><path d="{dots}"/></svg>')
