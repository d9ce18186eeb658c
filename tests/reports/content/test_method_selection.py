"""Of more methods than can be told apart, figures show those that are ahead, and say so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.synthetic_runs import Run, write_sweep

from fewstep.analysis import Summary, load, summarise
from fewstep.reports.content.method_selection import MOST, drawn
from fewstep.reports.report import write_report

MANY = 30


def sweep(root: Path) -> Path:
    """At one step the last methods are best, at four the first."""
    runs = [
        Run(f"M{i:02}", seed, {1: 100.0 - i + seed, 4: 50.0 + i + seed})
        for i in range(MANY)
        for seed in range(2)
    ]
    return write_sweep(root, runs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sweep(tmp_path)


def better(folder: Path, which: str) -> Summary:
    for file in folder.glob("*/evaluations/*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"better": which}))
    return summarise(load(folder))


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"M{i:02}" for i in numbers)


def test_all_are_drawn_where_they_can_be_told_apart(folder: Path) -> None:
    summary = summarise(load(folder)).only(names(*range(MOST)))
    assert drawn(summary, "M00") is summary


@pytest.mark.parametrize("which", ["lower", "higher"])
def test_the_best_of_every_column_and_the_baseline_are_drawn(folder: Path, which: str) -> None:
    """Ten from each end, whichever end is the better one, and the baseline from between."""
    shown = drawn(better(folder, which), "M15")
    assert shown.methods == names(*range(10), 15, *range(20, 30))
    assert shown.left_out == MANY - MOST
    assert {place[0] for place in shown.cells} == set(shown.methods)


def test_where_nothing_is_better_the_first_are_drawn(folder: Path) -> None:
    shown = drawn(better(folder, "neither"), "M29")
    assert shown.methods == names(*range(20), 29)


def test_tables_hold_all_and_figures_say_what_they_leave_out(folder: Path, tmp_path: Path) -> None:
    files = write_report(load(folder), {}, tmp_path / "out", baseline="M15")
    for name in ("table.md", "table.csv", "table.tex", "costs.md", "report.html"):
        assert all(f"M{i:02}" in files[name].read_text() for i in range(MANY)), name
    told = f"Drawn are {MOST} of {MANY} methods"
    assert files["report.md"].read_text().count(told) == 3
    page = files["report.html"].read_text()
    assert page.count(told) == 3
    rows = re.findall(r'<tr data-objective="\d+" data-method="(\d+)">\s*<th scope="row">(.*?)</th>',
                      page.split("</table>")[0])  # fmt: skip
    assert len(rows) == MANY
    # who is drawn has its line and marker beside its name, and the same number in the charts
    series = set(re.findall(r'<g class="series [^>]*data-method="(\d+)"', page))
    assert {look for look, head in rows if "<svg" in head} == series
    assert len(series) == MOST
    names_drawn = {re.sub(r"<.*?>", "", head) for _, head in rows if "<svg" in head}
    assert names_drawn == set(names(*range(10), 15, *range(20, 30)))


def test_the_legend_ends_with_what_is_not_drawn(folder: Path) -> None:
    from fewstep.reports.figures.drawing import fd_vs_nfe, seed_plot

    summary = drawn(summarise(load(folder)), "M00")
    for figure in (fd_vs_nfe(summary), seed_plot(summary)):
        assert figure is not None
        texts = [t.get_text() for t in figure.legends[0].get_texts()]
        assert texts[-1] == "not drawn: 9 more"
        figure.canvas.draw()
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
