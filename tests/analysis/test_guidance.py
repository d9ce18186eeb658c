"""Guidance as an axis, and a scale that is chosen on samples which the table does not use."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_run, write_sweep

from fewstep.analysis import load, summarise
from fewstep.analysis.costs import costs
from fewstep.analysis.filters import AmbiguousCells, select
from fewstep.analysis.guidance import over_guidance
from fewstep.errors import UserError
from fewstep.reports.content.captions import caption
from fewstep.reports.report import write_report

VALUES = {  # by scale, then sample set: at 1 and 2 steps
    1.0: ({1: 10.0, 2: 5.0}, {1: 11.0, 2: 6.0}, {1: 13.0, 2: 8.0}),
    2.0: ({1: 9.0, 2: 7.0}, {1: 20.0, 2: 4.0}, {1: 22.0, 2: 2.0}),
}


def guided(root: Path, sets: int = 3, **other: object) -> pd.DataFrame:
    """Two methods of two seeds; B and seed 1 have more."""
    folder = write_sweep(root, [Run(m, s) for m in "AB" for s in range(2)])
    for method in "AB":
        for seed in range(2):
            for scale, by_set in VALUES.items():
                for sample_set, values in enumerate(by_set[:sets]):
                    more = seed + 100 * (method == "B")
                    sampler = {"solver": "euler"}
                    if scale != 1:
                        sampler["guidance_interval"] = "0.1-0.8"
                    run = Run(
                        method, seed, {k: v + more for k, v in values.items()},
                        cell={"guidance": scale, "sample_set": sample_set, "sampler": sampler},
                        metric=other,
                    )  # fmt: skip
                    write_run(folder / run.key, run)
    return load(folder)


def test_the_best_scale_is_chosen_on_one_set_and_measured_on_the_others(tmp_path: Path) -> None:
    frame = guided(tmp_path)
    with pytest.raises(AmbiguousCells):
        summarise(frame)
    summary = summarise(frame, guidance="best")
    # 2 is best at one step on set 0, and worse on the others: that is what is told
    assert summary.cells["A", 1].values == {0: 21.0, 1: 22.0}
    assert summary.cells["A", 2].values == {0: 7.0, 1: 8.0}
    c = summary.conditions
    assert c.guidances == {("A", 1): 2.0, ("A", 2): 1.0, ("B", 1): 2.0, ("B", 2): 1.0}
    assert c.sample_sets == (1, 2)
    assert c.guidance is None
    told = caption(summary)
    assert (
        "Each cell's guidance scale is the best of 1 and 2 on sample set 0, which its value does "
        "not use; at steps: A 1 at 2 and 2 at 1; B 1 at 2 and 2 at 1." in told
    )
    assert "guidance selected for each cell, sample sets 1 and 2" in told
    assert costs(summary, frame, guidance="best").rows[0].gain[1] is not None


def test_a_scale_that_lacks_a_seed_is_not_chosen(tmp_path: Path) -> None:
    frame = guided(tmp_path)
    lacks = frame["guidance"].eq(2) & frame["method"].eq("A") & frame["seed"].eq(1)
    summary = summarise(frame[~lacks], guidance="best")
    assert summary.conditions.guidances["A", 1] == 1
    assert summary.conditions.guidances["B", 1] == 2


def test_one_sample_set_cannot_choose_and_be_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.sample_sets=2 or more"):
        summarise(guided(tmp_path, sets=1), guidance="best")


def test_curves_figure_and_rows(tmp_path: Path) -> None:
    frame = guided(tmp_path)
    curves = over_guidance(frame, select(frame, {"guidance": 1.0}))
    assert list(curves) == [1, 2]
    assert {m: list(curve) for m, curve in curves[1].items()} == {"A": [1.0, 2.0], "B": [1.0, 2.0]}
    point = curves[1]["A"][2.0]
    assert point.mean == pytest.approx((9 + 20 + 22) / 3 + 0.5)
    assert point.n == 2
    best = over_guidance(frame, select(frame, {"guidance": "best"}))
    assert best[1]["A"][2.0].mean == pytest.approx(21.5)  # of the sets that the table shows
    written = write_report(frame, {}, tmp_path / "report", guidance="best")
    assert {"fd_vs_guidance.png", "fd_vs_guidance.pdf", "guidance.tex"} <= set(written)
    rows = list(csv.DictReader(io.StringIO(written["guidance.csv"].read_text())))
    assert len(rows) == 8
    assert rows[1] == {
        "method": "A", "steps": "1", "guidance": "2.0", "mean": "21.5",
        "half_width": rows[1]["half_width"], "n": "2",
    }  # fmt: skip
    zero = frame.assign(guidance=frame["guidance"].replace(1.0, 0.0))  # it has no logarithm
    assert "fd_vs_guidance.png" in write_report(zero, {}, tmp_path / "zero", guidance=2)
    page = written["report.html"].read_text()
    assert "Quality versus guidance scale" in page
    assert "FD by guidance scale" in written["report.md"].read_text()
    assert "guidance" in written["table_preview.tex"].read_text()
    plain = frame[frame["guidance"] == 1]
    assert over_guidance(plain, select(plain, {})) == {}
    again = write_report(plain, {}, tmp_path / "report")
    assert "guidance.csv" not in again
    assert not (tmp_path / "report" / "fd_vs_guidance.png").exists()
