"""Diagnostics in words and files: tables, the page of a sweep, and which figures go where."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from fewstep.analysis.diagnostics import Diagnosed, jump_curves, loss_curves, tangent_curves
from fewstep.analysis.statistics import Curves, Estimate
from fewstep.files import write_file
from fewstep.reports.content import formatting
from fewstep.reports.content.formatting import exact, fraction, number
from fewstep.reports.figures import chart_data, diagnostics
from fewstep.reports.figures.drawing import curves, render


def table(means: Curves) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a method x length table: mean ± half-width (number of seeds)."""
    lengths = sorted({x for curve in means.values() for x in curve}, reverse=True)
    rows = [
        [method, *(_shown(curve.get(length)) for length in lengths)]
        for method, curve in means.items()
    ]
    return ["Method", *(f"d = {fraction(length)}" for length in lengths)], rows


def run_table(run: Diagnosed) -> list[list[str]]:
    """Header and rows of what is printed of one run."""
    denoising, logs = run.facts["denoising"], run.facts["logs"]
    few = list(zip(denoising["t"], denoising["rms"], strict=True))[3::4]
    return [
        ["measure", "at", "value"],
        *(["one step to data, RMS error", f"t = {t:.3g}", number(rms)] for t, rms in few),
        *(["jump against the exact flow, RMS error", f"d = {fraction(e['length'])}",
           number(e["rms"])] for e in run.facts.get("jump_error", [])),
        *([name, "held out", number(value)] for name, value in logs.items()),
    ]  # fmt: skip


def _shown(point: Estimate | None) -> str:
    if point is None:
        return "–"
    spread = f" ± {point.half_width:.2g}" if math.isfinite(point.half_width) else ""
    return f"{number(point.mean, point.half_width)}{spread} ({point.n})"


def csv(means: Curves, x: str, y: str) -> str:
    """Tidy: a line per method and x, at full precision."""
    return formatting.csv_table(["method", x, y, "half_width", "n"], [
        [method, repr(at), repr(point.mean), exact(point.half_width), point.n]
        for method, curve in means.items() for at, point in curve.items()
    ])  # fmt: skip


def page(sweep: str, jumps: Curves, tangents: Curves) -> str:
    """Markdown that refers to the figures beside it."""
    parts = [
        f"# Diagnostics of {formatting.markdown(sweep)}",
        "## Loss versus log-SNR",
        "![loss versus log-SNR](loss_vs_log_snr.png)",
        "The training loss of the EMA weights on held-out data, by the log signal-to-noise ratio "
        "it was taken at (the outermost points: all beyond them, t = t_max included), all jump "
        "lengths together. Its level is each objective's own (weights, targets): compare shapes. "
        + INTERVALS,
    ]
    if jumps:
        header, rows = table(jumps)
        parts += [
            "## Error of the learned jump map",
            formatting.markdown_table(header, rows, "-" + ">" * (len(header) - 1)),
            "![error versus length](jump_error.png)",
            JUMPS,
        ]
    if tangents:
        parts += [
            "## Tangent norms", "![tangent norms](tangent_norm.png)",
            "Mean over a training batch of the norm that the objective normalises by.",
        ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


INTERVALS = (
    "Bands: 95% Student-t interval of the mean over seeds; of one seed, two standard errors over "
    "its examples."
)
JUMPS = (
    "RMS error per coordinate of one jump of length d (a share of t_max) against the exact "
    "flow map of the data's closed form, mean ± half-width of the 95% t-interval over seeds (their "
    "number). Jumps begin at multiples of d, on the exact distribution there; objectives that "
    "jump to the data only begin at d. Flow matching's is the error of a single Euler step."
)


RUN_FILES = (
    "loss_grid.png", "loss_vs_log_snr.png", "denoising.png", "jump_error.png", "tangent_norm.png",
)  # fmt: skip
SWEEP_FILES = (
    "diagnostics.md", "loss_vs_log_snr.png", "loss_vs_log_snr.pdf", "loss_vs_log_snr.csv",
    "jump_error.png", "jump_error.pdf", "jump_error.csv", "tangent_norm.png", "tangent_norm.pdf",
)  # fmt: skip


def write_run(run: Diagnosed, arrays: Mapping[str, NDArray[Any]], folder: Path) -> list[Path]:
    """Draw one run's figures into ``folder``, and say which."""
    drawn = {
        "loss_grid": diagnostics.loss_grid(run.method, run.facts["loss_grid"]),
        "denoising": diagnostics.denoising(run.method, arrays, run.facts["denoising"]["rms"]),
        **_curve_figures([run]),
    }
    files = {f"{name}.png": render(f, "png") for name, f in drawn.items() if f is not None}
    return _written(folder, files, RUN_FILES)


def write_sweep(name: str, runs: Sequence[Diagnosed], folder: Path) -> list[Path]:
    """Write the figures, tables and page of a sweep's diagnosed runs, and say which."""
    losses, jumps = loss_curves(runs), jump_curves(runs)
    files: dict[str, str | bytes] = {
        "diagnostics.md": page(name, jumps, tangent_curves(runs)),
        "loss_vs_log_snr.csv": csv(losses, "log_snr", "loss"),
    }
    if jumps:
        files["jump_error.csv"] = csv(jumps, "length", "rms")
    for figure, drawn in _curve_figures(runs).items():
        files |= {f"{figure}.{kind}": render(drawn, kind) for kind in ("png", "pdf")}
    return _written(folder, files, SWEEP_FILES)


def _curve_figures(runs: Sequence[Diagnosed]) -> dict[str, Figure]:
    methods = list(dict.fromkeys(run.method for run in runs))
    jumps, tangents = jump_curves(runs), tangent_curves(runs)
    rows = {
        "loss_vs_log_snr": chart_data.loss(loss_curves(runs), methods),  # none: too few examples
        "jump_error": [chart_data.jump_error(jumps, methods)] if jumps else [],
        "tangent_norm": [chart_data.tangent_norms(tangents, methods)] if tangents else [],
    }
    return {name: curves(*shown) for name, shown in rows.items() if shown}


def _written(folder: Path, files: Mapping[str, str | bytes], known: Sequence[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(known) - files.keys():  # of an earlier look, and no longer true
        (folder / name).unlink(missing_ok=True)
    return [write_file(folder / name, files[name]) for name in known if name in files]
