"""The gallery's pictures, from the toy study: samples in 1, 2 and 4 steps, and errors of jumps.

fewstep sweep toy && fewstep diagnose toy       # 35 minutes on 2 cores
python docs/tools/toy_pictures.py runs/toy      # writes docs/images/toy/OBJECTIVE.png
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data.toy import GaussianMixture
from fewstep.experiments.run import load_config
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import load_network

DOCS = Path(__file__).parents[1]
STEPS = (1, 2, 4)
COUNT = 1000
SIDE = 1.35  # of the plane that is shown, from -SIDE to SIDE


def main(sweep: Path) -> None:
    """Draw each objective's first run of the sweep: as in its paper, not clipped."""
    listed = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"]
    runs: dict[str, RunDirectory] = {}
    for run in (RunDirectory(sweep / entry["key"]) for entry in listed):
        spec = json.loads((run.path / "spec.json").read_text(encoding="utf-8"))
        runs.setdefault(spec["config"]["objective"]["name"], run)
    errors = {name: jump_errors(run) for name, run in runs.items()}
    plt.style.use(DOCS.parent / "reports/figures/fewstep.mplstyle")
    folder = DOCS / "images/toy"
    folder.mkdir(exist_ok=True)
    for name, run in runs.items():
        others = [error for other, error in errors.items() if other != name]
        figure = draw(load_config(run), run, errors[name], others)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150)
        plt.close(figure)
        palette = Image.open(buffer).convert("RGB").quantize(40, Image.Quantize.FASTOCTREE)
        palette.save(folder / f"{name}.png", optimize=True)


def jump_errors(run: RunDirectory) -> list[tuple[float, float]]:
    """(length, RMS error) of each jump that ``fewstep diagnose`` has measured."""
    found = json.loads((run.path / "diagnostics/diagnostics.json").read_text())["jump_error"]
    return [(jump["length"], jump["rms"]) for jump in found]


@torch.no_grad()
def samples(config: RunConfig, run: RunDirectory, steps: int) -> Tensor:
    """(COUNT, 2) samples of the EMA weights, from the same noise for every run."""
    dataset = config.data.load()
    net = load_network(config, dataset, run, "ema")
    noise = torch.randn(COUNT, *dataset.shape, generator=torch.Generator().manual_seed(0))
    objective, g = config.objective, torch.Generator().manual_seed(1)
    return objective.sample(net, noise, None, objective.path.times(steps), g)


def density(mixture: GaussianMixture) -> tuple[Any, Any, Any]:
    """The data's density on a grid, for ``contour``."""
    axis = torch.linspace(-SIDE, SIDE, 80, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    points = torch.stack([x.flatten(), y.flatten()], 1)
    squares = torch.cdist(points, mixture.means.double()).square()
    heights = (-squares / (2 * mixture.std**2)).exp() @ mixture.weights.double()  # up to a factor
    return x.numpy(), y.numpy(), heights.view_as(x).numpy()


def draw(
    config: RunConfig, run: RunDirectory, error: list[tuple[float, float]], others: list[Any]
) -> Any:
    """The figure of one run."""
    figure, panels = plt.subplots(1, 4, figsize=(8, 2.3), width_ratios=(1, 1, 1, 1.3))
    grid = density(config.data.mixture())  # type: ignore[attr-defined]
    for panel, steps in zip(panels, STEPS, strict=False):
        x = samples(config, run, steps).numpy()
        panel.contour(*grid, levels=4, colors="0.6", linewidths=0.7, zorder=0)
        panel.scatter(x[:, 0], x[:, 1], s=2, lw=0, alpha=0.7)
        panel.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[], aspect="equal")
        panel.set_title(f"{steps} step{'s' * (steps > 1)}", fontsize=9)
        panel.grid(False)
    curve = panels[3]
    for other in filter(None, others):
        curve.plot(*np.transpose(other), "-" if len(other) > 1 else "o", color="0.85", ms=3, lw=1)
    if error:  # a matched distribution has no map to err from
        curve.plot(*np.transpose(error), "o-", ms=4)
    curve.set(xscale="log", yscale="log", xlabel="length d of a jump")
    curve.set_xticks([1 / 128, 1 / 32, 1 / 8, 1 / 2], ["1/128", "1/32", "1/8", "1/2"])
    curve.set_yticks([0.001, 0.01, 0.1], ["0.001", "0.01", "0.1"])
    curve.minorticks_off()
    curve.set_title("error (grey: others)", fontsize=9)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
