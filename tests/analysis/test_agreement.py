"""The order of methods in several extractors, against scipy and by hand."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import Run, write_run, write_sweep
from scipy.stats import kendalltau

from fewstep.analysis import load
from fewstep.analysis.agreement import agreements, kendall_tau
from fewstep.analysis.filters import select
from fewstep.reports.report import write_report

OTHER = {"label": "FD-digits-net@597", "id": "ffffffffffff", "extractor": "net"}


def test_tau_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 8, 20):
        x = rng.normal(size=n)
        for y in (x, -x, rng.normal(size=n), rng.integers(0, 4, n), np.floor(x)):
            assert kendall_tau(x, y) == pytest.approx(float(kendalltau(x, y).statistic))
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert math.isnan(kendall_tau([1, 2, 3], [5, 5, 5]))


def test_of_the_runs_that_both_have(tmp_path: Path) -> None:
    names = ["A", "B", "C"]
    folder = write_sweep(tmp_path, [Run(m, s) for m in names for s in range(2)])
    orders = {  # by seed: the other extractor's values of A, B, C at one step
        0: (1.0, 2.0, 3.0),
        1: (2.0, 1.0, 3.0),  # one pair of three is reversed: 1/3
    }
    for seed, values in orders.items():
        for i, name in enumerate(names):
            run = Run(name, seed, {1: 10.0 + i, 4: 5.0 - i})
            write_run(folder / run.key, run)
            for file in (folder / run.key / "evaluations").iterdir():
                file.rename(file.with_name(f"first-{file.name}"))
            other = Run(name, seed, {1: values[i], 4: 1.0 + i}, metric=OTHER)
            write_run(folder / other.key, other)
    frame = load(folder)
    cells = select(frame, {"metric": "FD-digits-net@597"})
    (found,) = agreements(frame, cells)
    assert {found.first, found.second} == {"FD-digits-cnn@597", "FD-digits-net@597"}
    assert found.methods == 3
    assert found.by_steps[1].mean == pytest.approx((1 + 1 / 3) / 2)
    assert found.by_steps[4].mean == -1
    assert found.mean.mean == pytest.approx((0 + (1 / 3 - 1) / 2) / 2)
    half = 12.706 * np.std([1, 1 / 3], ddof=1) / 2**0.5
    assert found.by_steps[1].half_width == pytest.approx(half, rel=1e-3)
    written = write_report(frame, {}, tmp_path / "report", metric="FD-digits-cnn@597")
    assert "Rank agreement of extractors" in written["report.html"].read_text()
    assert "0.67 \\[−1.00, 1.00\\] (2)" in written["agreement.md"].read_text()
    rows = list(csv.DictReader(io.StringIO(written["agreement.csv"].read_text())))
    assert [row["steps"] for row in rows] == ["1", "4", "0"]
    fewer = frame.assign(samples=frame["samples"].where(frame["extractor"] == "cnn", 99))
    assert agreements(fewer, cells) == []  # of another number of samples
    same = frame.assign(extractor="cnn", extractor_sha256="x")
    assert agreements(same, cells) == []
    two = frame[frame["method"] != "C"]
    assert agreements(two, cells) == []
    one = frame[frame["extractor"] == "cnn"]
    assert agreements(one, select(one, {})) == []
