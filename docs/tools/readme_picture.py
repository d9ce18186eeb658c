"""The README's picture: samples in few steps beside the quality curve of the MNIST study.

    python docs/tools/readme_picture.py

Reads docs/studies/mnist.md (its table) and docs/images/mnist_samples.png, which are the report that
``fewstep sweep mnist`` writes, and writes docs/images/few_steps.png.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image

DOCS = Path(__file__).parents[1]
METHODS = ("Flow matching", "Shortcut", "Consistency", "sCM", "MeanFlow")
STEPS = (1, 2, 4)  # of the samples; the curve has all
TICKS = (0.5, 1, 3, 10, 30, 100)
ROWS = 2  # of the four rows of samples that the report shows of each cell


def table(text: str) -> tuple[list[int], dict[str, NDArray[np.float64]], float]:
    """Steps, (steps, 2) means and half-widths by method, and the floor, of a report's table."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    start = next(i for i, row in enumerate(rows) if row[0] == "Method" and "1 step" in row[1])
    steps = [int(head.split()[0]) for head in rows[start][1:]]
    values: dict[str, NDArray[np.float64]] = {}
    for method, *cells in rows[start + 2 :]:
        numbers = [[float(x) for x in re.findall(r"\d+\.?\d*", cell)[:2]] for cell in cells]
        if "floor" in method:
            return steps, values, numbers[0][0]
        if not any(numbers):  # the name of a group
            continue
        values[method] = np.array(numbers)
    raise SystemExit("docs/studies/mnist.md: its first table has no row of the floor")


def blocks(picture: NDArray[np.uint8]) -> list[list[NDArray[np.uint8]]]:
    """The blocks of samples of a report's ``samples.png``, by method and number of steps."""
    dark = picture < 60
    # a line through samples is mostly black, one between blocks or through text is not
    rows = spans(dark.mean(axis=1) > 0.3)
    columns = spans(dark[rows[0][0] : rows[0][1]].mean(axis=0) > 0.3)
    joined_rows, joined_columns = join(rows), join(columns)
    return [[picture[a:b, c:d] for c, d in joined_columns] for a, b in joined_rows]


def spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Beginnings and ends of the runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 10]


def join(parts: list[tuple[int, int]], gap: int = 8) -> list[tuple[int, int]]:
    """Spans with less than ``gap`` pixels between them, as one."""
    joined = [parts[0]]
    for a, b in parts[1:]:
        joined[-1:] = [(joined[-1][0], b)] if a - joined[-1][1] < gap else [joined[-1], (a, b)]
    return joined


def main() -> None:
    """Draw and write the picture."""
    steps, values, floor = table((DOCS / "studies/mnist.md").read_text(encoding="utf-8"))
    grid = blocks(np.asarray(Image.open(DOCS / "images/mnist_samples.png").convert("L")))
    methods = list(values)
    plt.style.use(DOCS.parent / "reports/figures/fewstep.mplstyle")
    figure = plt.figure(figsize=(10, 4.3))
    outer = figure.add_gridspec(1, 2, width_ratios=(1.25, 1), wspace=0.16)
    inner = outer[0].subgridspec(len(METHODS), len(STEPS), wspace=0.05, hspace=0.08)
    for row, method in enumerate(METHODS):
        for column, count in enumerate(STEPS):
            axes = figure.add_subplot(inner[row, column])
            block = grid[methods.index(method)][steps.index(count)]
            axes.imshow(block[: len(block) * ROWS // 4], cmap="gray", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{count} step{'s' * (count > 1)}", fontsize=10)
            if column == 0:
                axes.set_ylabel(
                    method, rotation=0, ha="right", va="center", fontsize=10, color=f"C{row}"
                )
    curve = figure.add_subplot(outer[1])
    for row, method in enumerate(METHODS):
        mean, half = values[method].T
        curve.plot(steps, mean, "o-", color=f"C{row}", label=method)
        curve.fill_between(steps, mean - half, mean + half, color=f"C{row}", alpha=0.15, lw=0)
    curve.axhline(floor, color="0.5", ls=":", label="real images")
    curve.set(xscale="log", yscale="log", xticks=steps, xlabel="network calls per image")
    curve.set_xticklabels(map(str, steps))
    curve.set_yticks(TICKS, map(str, TICKS))
    curve.minorticks_off()
    curve.set_ylabel("Fréchet distance (lower is better)")
    curve.legend(loc="lower left", bbox_to_anchor=(0, 0.07), ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight", dpi=130)
    # a palette is a third of the size, and an octree's keeps all hues
    palette = Image.open(buffer).convert("RGB").quantize(192, Image.Quantize.FASTOCTREE)
    palette.save(DOCS / "images/few_steps.png", optimize=True)


if __name__ == "__main__":
    main()
