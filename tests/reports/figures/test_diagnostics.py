"""Figures and pages of diagnostics hold what was measured."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.analysis.diagnostics import Diagnosed, jump_curves, loss_curves, tangent_curves
from fewstep.analysis.statistics import half_width
from fewstep.reports.content.formatting import fraction
from fewstep.reports.figures import chart_data, diagnostics, drawing
from fewstep.reports.html import diagnostics_page


def diagnosed(
    method: str, seed: int, loss: float = 1.0, jumps: dict[float, float] | None = None, **more: Any
) -> Diagnosed:
    """A run whose loss at log-SNR b + 1/2 is loss + b / 100, measured on 100 examples each."""
    bounds = [None, -1.0, 0.0, 1.0, None]
    bins = [
        {"low": low, "high": high, "mean": loss + i / 100, "standard_error": 0.05, "count": 100}
        for i, (low, high) in enumerate(itertools.pairwise(bounds))
    ]
    bins[1] |= {"mean": None, "standard_error": None, "count": 0}
    bins[2] |= {"mean": 99.0, "count": 3}  # too few
    grid = {
        "t_edges": [0, 0.5, 1.0],
        "d_edges": [0, 1 / 128, 0.3, 1.0],
        "mean": [[1, 2], [None, None], [None, 0.02], [0.01, None]],
        "count": [[5, 5], [0, 0], [0, 5], [5, 0]],
    }
    facts = {
        "loss_by_log_snr": bins,
        "loss_grid": grid,
        "denoising": {"t": [i / 16 for i in range(1, 17)], "rms": [i / 10 for i in range(1, 17)]},
        "logs": {"loss_flow": 0.5},
    }
    if jumps is not None:
        facts["jump_error"] = [{"length": d, "rms": rms} for d, rms in jumps.items()]
    metrics = [{"step": s, "loss": 1.0, **{k: v * s for k, v in more.items()}} for s in (10, 20)]
    return Diagnosed(f"{method}-{seed}", method, seed, facts, metrics)


def arrays(*shape: int, dtype: Any = np.uint8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = (4, *shape)
    made = {"clean": n, "noisy": (16, *n), "denoised": (16, *n)}
    drawn = {name: rng.integers(0, 256, size).astype(dtype) for name, size in made.items()}
    return {"t": np.arange(1, 17) / 16, **drawn}


RUNS = [
    *(diagnosed("A $x_1", s, 1.0 + s, {1.0: 0.4 + s, 0.5: 0.125}, tangent_norm=1 + s)
      for s in range(3)),
    diagnosed("B", 0, 2.0, {1.0: 0.2}),
    diagnosed("C", 0, -0.5),
]  # fmt: skip


def test_curves_are_means_over_seeds_with_their_interval() -> None:
    losses = loss_curves(RUNS)
    assert list(losses) == ["A $x_1", "B", "C"]
    assert list(losses["A $x_1"]) == [-1.5, 1.5]  # open bins, half a bin out; few counts left out
    point = losses["A $x_1"][1.5]
    assert point.mean == pytest.approx(2.03)
    assert point.half_width == pytest.approx(float(half_width([1.03, 2.03, 3.03])))
    assert losses["B"][-1.5].half_width == pytest.approx(0.1)  # 2 standard errors
    jumps = jump_curves(RUNS)
    assert list(jumps["A $x_1"]) == [0.5, 1.0]
    assert jumps["A $x_1"][1.0].mean == pytest.approx(1.4)
    assert math.isnan(jumps["B"][1.0].half_width)
    assert "C" not in jumps
    assert {m: [p.mean for p in c.values()] for m, c in tangent_curves(RUNS).items()} == {
        "A $x_1": [20, 40]
    }


def test_losses_below_zero_have_a_panel_of_their_own() -> None:
    methods = ["A $x_1", "B", "C"]
    figure = drawing.curves(*chart_data.loss(loss_curves(RUNS), methods))
    above, below = figure.axes
    assert [line.get_label() for line in above.lines] == ["A $x_1", "B"]
    assert [line.get_label() for line in below.lines] == ["C"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["A $x_1", "B", "C"]
    assert list(below.lines[0].get_ydata()) == pytest.approx([-0.5, -0.47])
    colors = {line.get_color() for axes in figure.axes for line in axes.lines}
    assert len(colors) == 3
    assert len(chart_data.loss(loss_curves(RUNS[:4]), methods)) == 1


def test_jump_errors_are_drawn_against_their_length() -> None:
    figure = drawing.curves(chart_data.jump_error(jump_curves(RUNS), ["C", "A $x_1", "B"]))
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1/2", "1"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.5, 0.125], [1, 1.4]])
    other = chart_data.tangent_norms(tangent_curves(RUNS), ["C", "A $x_1", "B"])
    assert (
        drawing.curves(other).axes[0].lines[0].get_color() == axes.lines[0].get_color()
    )  # a method keeps its colour


def test_the_heat_map_shows_each_cell_and_what_is_not_trained() -> None:
    figure = diagnostics.loss_grid("A", RUNS[0].facts["loss_grid"])
    axes, bar = figure.axes
    shown = axes.collections[0].get_array()
    np.testing.assert_array_equal(
        shown.filled(-1).reshape(4, 2), [[1, 2], [-1, -1], [-1, 0.02], [0.01, -1]]
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "≤ 1/128", "0.3", "1"]
    assert axes.patch.get_hatch()
    assert bar.get_yscale() == "log"
    assert bar.get_ylabel() == "Mean held-out loss"
    diagnostics_page.render(figure, "png")
    assert not any("$" in t.get_text() for t in bar.get_yticklabels())

    plain = {"t_edges": [0, 1, 2], "d_edges": None, "mean": [[-1, 3]], "count": [[1, 1]]}
    axes, bar = diagnostics.loss_grid("A", plain).axes
    assert bar.get_yscale() == "linear"
    assert list(axes.get_yticks()) == []


def test_denoised_images_are_shown_by_time() -> None:
    shown = arrays(1, 8, 8)
    figure = diagnostics.denoising("A", shown, list(np.arange(16) / 10))
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 4 + 8 * 5  # clean; then x_t and four denoised a row
    np.testing.assert_array_equal(images[0][..., 0], shown["clean"][0, 0])
    np.testing.assert_array_equal(images[4][..., 2], shown["noisy"][15, 0, 0])
    np.testing.assert_array_equal(images[4 + 2][..., 0], shown["denoised"][15, 1, 0])
    np.testing.assert_array_equal(images[-5][..., 1], shown["noisy"][1, 0, 0])
    words = [axes.get_ylabel() for axes in figure.axes]
    assert "t = 1.00\nRMS 1.50" in words
    assert "t = 0.12\nRMS 0.100" in words


def test_denoised_points_are_scattered_and_others_are_not_drawn() -> None:
    shown = arrays(2, dtype=np.float32)
    figure = diagnostics.denoising("A", shown, [0.1] * 16)
    assert len(figure.axes) == 16
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_xydata(), shown["noisy"][15])
    np.testing.assert_array_equal(figure.axes[8].lines[1].get_xydata(), shown["denoised"][15])
    assert diagnostics.denoising("A", arrays(3, dtype=np.float32), [0.1] * 16) is None
    assert diagnostics.denoising("A", arrays(4, 8, 8, dtype=np.float32), [0.1] * 16) is None


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    files = diagnostics_page.write_sweep("toy", RUNS, tmp_path)
    assert sorted(f.name for f in files) == sorted(diagnostics_page.SWEEP_FILES)
    page = (tmp_path / "diagnostics.md").read_text()
    assert "| Method | d = 1 | d = 1/2 |" in page
    assert r"| A \$x\_1 | 1.40 ± 2.5 (3) | 0.125 ± 0 (3) |" in page
    assert "| B | 0.200 (1) | – |" in page
    with (tmp_path / "jump_error.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], float(r["length"]), float(r["rms"]), r["n"]) for r in rows] == [
        ("A $x_1", 0.5, 0.125, "3"), ("A $x_1", 1.0, pytest.approx(1.4), "3"), ("B", 1.0, 0.2, "1")
    ]  # fmt: skip
    before = {f.name: f.read_bytes() for f in files}
    diagnostics_page.write_sweep("toy", RUNS, tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before

    left = diagnostics_page.write_sweep(
        "toy", [RUNS[-1]], tmp_path
    )  # nothing known of jumps or tangents
    assert {f.name for f in left} == {f.name for f in tmp_path.iterdir()}
    assert "jump" not in (tmp_path / "diagnostics.md").read_text().replace("all jump lengths", "")


def test_a_run_has_its_figures_and_a_table(tmp_path: Path) -> None:
    files = diagnostics_page.write_run(RUNS[0], arrays(1, 8, 8), tmp_path)
    assert sorted(f.name for f in files) == sorted(diagnostics_page.RUN_FILES)
    assert diagnostics_page.run_table(RUNS[3]) == [
        ["measure", "at", "value"],
        *(["one step to data, RMS error", f"t = {t}", v]
          for t, v in (("0.25", "0.400"), ("0.5", "0.800"), ("0.75", "1.20"), ("1", "1.60"))),
        ["jump against the exact flow, RMS error", "d = 1", "0.200"],
        ["loss_flow", "held out", "0.500"],
    ]  # fmt: skip
    one_length = diagnostics_page.write_run(RUNS[3], arrays(2, dtype=np.float32), tmp_path)
    assert "tangent_norm.png" not in {f.name for f in one_length}
    assert not (tmp_path / "tangent_norm.png").exists()


def test_fractions() -> None:
    assert [fraction(x) for x in (1.0, 0.5, 1 / 128, 0.3, 0.0)] == ["1", "1/2", "1/128", "0.3", "0"]
