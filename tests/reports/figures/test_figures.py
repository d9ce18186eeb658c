"""Figures hold what the summary holds; the report is whole, and the same bytes each time."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_sweep
from matplotlib.colors import to_hex
from matplotlib.image import imread

from fewstep.analysis import Summary, load, load_samples, summarise
from fewstep.errors import UserError
from fewstep.reports.figures.drawing import fd_vs_nfe, render
from fewstep.reports.figures.sample_grid import sample_grid
from fewstep.reports.report import FILES, write_report


def images(fill: int, channels: int = 1) -> np.ndarray:
    return np.full((20, channels, 8, 8), fill, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = [
        Run("$FM_1", s, {1: 90.0 + s, 4: 12.0 + s}, images={1: images(10), 4: images(200)})
        for s in range(3)
    ]
    runs += [Run("Heun", s, {1: 40.0 + s, 4: 9.0}, nfe_per_step=2) for s in range(2)]
    runs += [Run("CT | x", s, failure="nan") for s in range(3)]
    return write_sweep(tmp_path, runs)


@pytest.fixture
def summary(folder: Path) -> Summary:
    return summarise(load(folder))


def test_the_curve_shows_means_seeds_and_floor(summary: Summary) -> None:
    figure = fd_vs_nfe(summary)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([1, 4], [91.0, 13.0]) in drawn
    assert ([2, 8], [40.5, 9.0]) in drawn  # Heun: at its function evaluations, not its steps
    dots = [line.get_xydata() for line in axes.lines if line.get_marker() == "."]
    seeds = {(int(x), float(y)) for x, y in np.concatenate(dots)}  # a dot per seed
    assert seeds == {(1, 90.0), (1, 91.0), (1, 92.0), (4, 12.0), (4, 13.0), (4, 14.0), (2, 40.0),
                     (2, 41.0), (8, 9.0)}  # fmt: skip
    assert [0, 1] in [x for x, y in drawn if list(y) == [1.5, 1.5]]  # the floor, right across
    assert list(axes.get_xticks()) == [1, 2, 4, 8]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["$FM_1", "Heun", "CT | x\nfailed (3/3)", "real vs real floor (1.50)",
                      "95% t-interval of the mean"]  # fmt: skip


def test_the_band_is_the_t_interval_kept_above_the_axis(tmp_path: Path) -> None:
    runs = [Run("A", s, {1: v, 2: 5.0 + s / 10}) for s, v in enumerate([1.0, 9.0, 20.0])]
    summary = summarise(load(write_sweep(tmp_path, runs)))
    axes = fd_vs_nfe(summary).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    two = summary.cells["A", 2]
    at_two = corners[corners[:, 0] == 2][:, 1]
    assert at_two.min() == pytest.approx(two.mean - two.half_width)
    assert at_two.max() == pytest.approx(two.mean + two.half_width)
    one = summary.cells["A", 1]
    assert one.mean - one.half_width < 0  # which a log axis can not show
    assert corners[corners[:, 0] == 1][:, 1].min() == pytest.approx(axes.get_ylim()[0])
    assert axes.get_ylim()[0] > 0


def test_methods_differ_in_colour_and_marker(tmp_path: Path) -> None:
    runs = [Run(f"M{i}", 0, {1: 1.0 + i}) for i in range(9)]
    legend = fd_vs_nfe(summarise(load(write_sweep(tmp_path, runs)))).legends[0]
    handles = legend.legend_handles[:9]
    assert len({(to_hex(h.get_color()), h.get_marker()) for h in handles}) == 9
    assert len({h.get_marker() for h in handles}) == 9


def test_tiles_are_the_first_images_pixel_for_pixel(summary: Summary) -> None:
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    figure = sample_grid(summary, {("$FM_1", 1): shown}, block=(2, 3))
    mosaic = figure.axes[0].images[0].get_array()
    scale = mosaic.shape[1] // 26  # three images of 8 pixels and two lines between
    assert mosaic.shape[:2] == (17 * scale, 26 * scale)
    small = mosaic[::scale, ::scale]
    np.testing.assert_array_equal(small[9:17, 18:26], shown[5].transpose(1, 2, 0))
    # and so they stay in the file: no interpolation on the way
    png = (imread(io.BytesIO(render(figure, "png")))[..., :3] * 255).round().astype(np.uint8)
    found = any(
        np.array_equal(png[y : y + mosaic.shape[0], x : x + mosaic.shape[1]], mosaic)
        for y in range(30, 60)
        for x in range(png.shape[1] - mosaic.shape[1])
    )
    assert found


def test_empty_tiles_say_why(summary: Summary) -> None:
    figure = sample_grid(summary, {("$FM_1", 1): images(9), ("$FM_1", 4): images(9)})
    words = [[t.get_text() for t in axes.texts] for axes in figure.axes]
    assert words == 2 * [[], ["missing"], ["failed"]]  # column by column
    assert [t.get_text() for t in figure.texts] == ["1 step", "$FM_1", "Heun", "CT | x", "4 steps"]


def test_points_are_scattered_in_one_window(summary: Summary) -> None:
    points = np.random.default_rng(0).normal(size=(500, 2))
    figure = sample_grid(summary, {("$FM_1", 1): points, ("$FM_1", 4): 3 * points})
    windows = [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes if axes.lines]
    assert len(windows) == 2
    assert windows[0] == windows[1]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), points[:, 0])


@pytest.mark.parametrize("bad", [np.zeros((4, 2, 8, 8), np.uint8), np.zeros((4, 1, 8, 8)),
                                 np.zeros((5, 3))])  # fmt: skip
def test_what_can_not_be_drawn_is_refused(summary: Summary, bad: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"neither uint8 images .* nor points"):
        sample_grid(summary, {("$FM_1", 1): bad})


def test_the_report_is_whole(folder: Path, tmp_path: Path) -> None:
    frame = load(folder)
    samples = load_samples(folder, frame)
    first = write_report(frame, samples, tmp_path / "one" / "deep")
    assert set(first) == set(FILES) == {p.name for p in (tmp_path / "one" / "deep").iterdir()}
    assert not {name for name in first if first[name].stat().st_size > 600_000}
    assert all(path.stat().st_size > 0 for path in first.values())
    assert b"CreationDate" not in first["fd_vs_nfe.pdf"].read_bytes()
    page = first["report.md"].read_text()
    for fact in ("](fd_vs_nfe.png)", "](samples.png)", "c0ffee", "laptop", "heun-s1", r"CT \| x",
                 "nan \\| at step 200", "Student-t", "123,456", "](fd_vs_compute.png)",
                 "](seeds.png)", "## Methods", "Cost of training"):  # fmt: skip
        assert fact in page
    assert first["table.md"].read_text().rstrip() in page
    assert len(first["runs.csv"].read_text().splitlines()) == 1 + len(frame)
    pd.testing.assert_frame_equal(pd.read_parquet(first["runs.parquet"]), frame)


def test_a_report_in_another_process_is_the_same(folder: Path, tmp_path: Path) -> None:
    """And it takes the place of an earlier one, in one piece or not at all."""
    here = tmp_path / "here"
    frame = load(folder)
    samples = load_samples(folder, frame)
    first = write_report(frame, samples, here, published="cifar10")
    assert {"samples.png", "published.tex"} <= set(first)
    (here / "notes.txt").write_text("mine")
    vectors = {("Heun", 1): np.zeros((5, 3), np.float32)}  # which have no picture
    files = write_report(frame, vectors, here)
    assert "samples.png" not in files
    assert {p.name for p in here.iterdir()} == {*files, "notes.txt"}
    assert "samples.png" not in (here / "report.md").read_text()
    before = {n: p.read_bytes() for n, p in files.items()}
    with pytest.raises(UserError, match="no cells with weights 'raw'"):
        write_report(frame, {}, here, weights="raw")
    assert {n: p.read_bytes() for n, p in files.items()} == before

    code = (
        "import sys; from pathlib import Path; from fewstep.analysis import load\n"
        "from fewstep.reports.report import write_report\n"
        "write_report(load(Path(sys.argv[1])), {}, Path(sys.argv[2]))"
    )
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-c", code, str(folder), str(there)], check=True)
    assert before == {p.name: p.read_bytes() for p in there.iterdir()}


def test_a_sweep_without_results_still_has_a_report(tmp_path: Path) -> None:
    runs = [Run("A", 0, failure="nan"), Run("B", 0, done=False)]
    frame = load(write_sweep(tmp_path, runs))
    files = write_report(frame, {}, tmp_path / "out")
    table = files["table.md"].read_text()
    assert "| A | failed (1/1) | failed (1/1) | failed (1/1) |" in table
    assert "| B | not run | not run | not run |" in table
    assert "nothing has been evaluated" in table


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, fewstep.reports.report, fewstep.reports.tables.terminal\n"
        "heavy = {'matplotlib', 'torch', 'mlflow', 'scipy.stats', 'fewstep.experiments'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
