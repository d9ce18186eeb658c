"""Tables say the same in Markdown, LaTeX, CSV and a terminal, whatever the methods are called."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import Run, write_sweep
from rich.console import Console
from scipy import stats

from fewstep.analysis import Summary, load, summarise
from fewstep.analysis.summary_types import Cell
from fewstep.reports.content import formatting
from fewstep.reports.content.captions import caption
from fewstep.reports.tables import plain, quality, terminal

HOSTILE = r"50%_&\~^#${}|<b>*x* `c` [bold]--π é 中 “q” a" + "\n| 1 | 2 |"


def cell(values: list[float], failed: int = 0, missing: int = 0, stopped: int = 0) -> Cell:
    n = len(values)
    spread = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else math.nan
    return Cell(
        values=dict(enumerate(values)),
        failed_seeds=tuple(range(n, n + failed)),
        missing_seeds=tuple(range(n + failed, n + failed + missing)),
        stopped_seeds=tuple(range(n + failed + missing, n + failed + missing + stopped)),
        mean=sum(values) / n if n else math.nan,
        half_width=spread,
        keys=tuple(f"k{i}" for i in range(n)),
        nfe=1,
    )


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    runs = [Run("FM", s, {1: 100.0 + s, 4: 12.0 + s / 10}) for s in range(3)]
    runs += [Run("sCM", s, {1: 20.0 + s, 4: 12.1 - s / 10}) for s in range(3)]
    runs += [Run("Shortcut", 0, {1: 30.0}), Run("Shortcut", 1, failure="nan")]
    runs += [Run("Shortcut", 2, {1: 31.0}), *(Run("CT", s, failure="oom") for s in range(3))]
    return summarise(load(write_sweep(tmp_path, runs)))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (cell([12.1, 12.3, 12.5]), "12.3 ± 0.5 (3)"),  # t = 4.303, s = .2: .4969
        (cell([12.30, 12.31]), "12.30 ± 0.06 (2)"),  # decimals follow the spread: .0635
        (cell([123.4]), "123 (1)"),
        (cell([0.01234]), "0.0123 (1)"),
        (cell([3e6]), "3e+06 (1)"),
        (cell([0.0]), "0.00 (1)"),
        (cell([-0.5, -0.5]), "-0.500 ± 0.000 (2)"),
        (cell([1.0, 1.0], failed=1), "1.00 ± 0.00 (2 of 3; 1 failed)"),
        (cell([1.0], failed=1, missing=2), "1.00 (1 of 4; 1 failed; 2 missing)"),
        (cell([], failed=3), "failed (3/3)"),
        (cell([], missing=3), "not run"),
        (cell([], failed=1, missing=2), "failed (1/3), not run (2/3)"),
        (replace(cell([], missing=3), unevaluated_seeds=(0, 1, 2)), "not evaluated"),
        (
            replace(cell([], failed=1, missing=2), unevaluated_seeds=(1,)),
            "failed (1/3), not evaluated (1/3), not run (1/3)",
        ),
        (cell([], stopped=3), "stopped (3/3)"),
        (cell([], failed=1, stopped=1, missing=1), "failed (1/3), stopped (1/3), not run (1/3)"),
        (cell([1.0], stopped=2), "1.00 (1 of 3; 2 stopped)"),
    ],
)
def test_a_cell_accounts_for_every_run(shown: Cell, expected: str) -> None:
    assert formatting.plain(shown) == expected


def test_markdown(summary: Summary) -> None:
    lines = quality.markdown(summary).splitlines()
    assert lines[0] == "| Method | 1 step | 4 steps |"
    assert lines[2].startswith("| FM | <ins>101 ± 2</ins> (3) | <ins>12.1 ± 0.2</ins> (3)")
    assert "| **21.0 ± 2.5** (3) | **12.0 ± 0.2** (3) |" in lines[3]
    assert lines[4].endswith("(2 of 3; 1 failed) | failed (1/3), not evaluated (2/3) |")
    assert lines[4].startswith("| Shortcut | 30.5 ± 6.4 ")
    assert lines[5] == "| CT | failed (3/3) | failed (3/3) |"
    assert lines[6] == "| *real vs real floor* | *1.50* | *1.50* |"
    # second at 4 steps, and not told from the best
    assert "</ins> (3) ≈" in lines[2]


def test_the_caption_states_the_protocol(summary: Summary) -> None:
    words = caption(summary)
    for fact in ("FD-digits-cnn@597", "a1b2c3d4e5f6", "01234567", "597 samples", "1,200 refer",
                 "train split", "EMA weights", "no guidance", "solver=euler", "seeds 0, 1 and 2",
                 "half-width of the 95% Student-t interval", "underpowered at 3", "500 training",
                 "Floor", "Best mean bold"):  # fmt: skip
        assert fact in words


def test_the_caption_tells_what_differs(tmp_path: Path) -> None:
    heun = {"sampler": {"solver": "heun"}, "guidance": 2.0, "weights": "raw"}
    other = {"guidance": 2.0, "weights": "raw"}
    runs = [Run("A", 0, {2: 1.0}, cell=heun, nfe_per_step=2), Run("B", 0, {2: 2.0}, cell=other)]
    words = caption(
        summarise(load(write_sweep(tmp_path, [*runs, Run("C", 0, {2: 3}, cell=other)])))
    )
    assert "Sampler: solver=euler; solver=heun for A." in words
    assert "A takes 4 function evaluations" in words
    assert "raw weights, guidance 2" in words
    assert "one run, so no interval" in words


def test_the_caption_tells_whether_budgets_are_equal(tmp_path: Path) -> None:
    few = {"training": {"steps": 300}}
    shorter = Run("B", 0, {1: 2.0}, train_steps=300, config=few)
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0}), shorter])
    differ = "Budgets differ: 300 and 500 training steps"
    assert differ in caption(summarise(load(folder)))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["budget"] = {"description": "each run trains for 9 FLOPs"}
    (folder / "sweep.json").write_text(json.dumps(plan))
    words = caption(summarise(load(folder)))
    assert "Equal budgets: each run trains for 9 FLOPs. 300 and 500 training steps" in words
    assert differ not in words


def test_csv_holds_full_precision(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(quality.csv(summary))))
    assert len(rows) == 8
    by_place = {(row["method"], int(row["steps"])): row for row in rows}
    row = by_place["sCM", 4]
    assert float(row["mean"]) == summary.cells["sCM", 4].mean
    assert float(row["half_width"]) == summary.cells["sCM", 4].half_width
    assert (row["best"], row["second"], row["n"], row["floor"]) == ("1", "0", "3", "1.5")
    assert row["keys"] == "scm-s0 scm-s1 scm-s2"
    lost = by_place["CT", 1]
    assert (lost["mean"], lost["n"], lost["failed"], lost["expected"]) == ("", "0", "3", "3")


def test_csv_survives_a_hostile_name(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(quality.csv(renamed(summary, HOSTILE)))))
    assert rows[0]["method"] == HOSTILE
    assert len(rows) == 8


def test_the_terminal_shows_the_same(summary: Summary) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(terminal.table(renamed(summary, "FM [bold]|")))
    shown = console.export_text()
    for cell_text in ("FM [bold]|", "21.0 ± 2.5 (3)", "30.5 ± 6.4 (2 of 3; 1 failed)", "(3/3)",
                      "real vs real floor", "FD-digits-cnn@597"):  # fmt: skip
        assert cell_text in shown


def test_markdown_escapes_names(summary: Summary) -> None:
    lines = quality.markdown(renamed(summary, HOSTILE)).splitlines()
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 4  # the table keeps its three columns
    assert not re.search(r"(?<!\\)[<*`_\[]", lines[2].split(" | ")[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("50%_a&b#c$d", r"50\%\_a\&b\#c\$d"),
        (r"\{~^}", r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\}"),
        ("a--b-c---d", r"a-{}-{}b-c-{}-{}-d"),
        ("π Σ é 中\n", r"$\pi$ $\Sigma$ {\'{e}} {[}U+4E2D{]} "),
        ("a · b ± <", r"a $\cdot$ b $\pm$ \textless{}"),
    ],
)
def test_latex_escapes(name: str, expected: str) -> None:
    assert formatting.latex(name) == expected


def test_latex_marks_and_rows(summary: Summary) -> None:
    shown = quality.latex(summary)
    assert r"\textbf{12.0 {\scriptsize$\pm$ 0.2}} {\scriptsize(3)} \\" in shown
    assert r"\underline{12.1 {\scriptsize$\pm$ 0.2}}$^{\approx}$" in shown
    assert r"CT & {\scriptsize failed (3/3)} & {\scriptsize failed (3/3)} \\" in shown
    assert r"\textit{real vs real floor} & 1.50 & 1.50 \\" in shown


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", ["FM", HOSTILE, "Ünïcødé ς · [a]=1 · *b=[2] &", "[1] x", "*"])
def test_latex_compiles(summary: Summary, name: str, tmp_path: Path) -> None:
    named = renamed(summary, name)
    (tmp_path / "table.tex").write_text(quality.latex(replace(named, sweep=name)))
    (tmp_path / "document.tex").write_text(plain.latex_document("table"))
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=tmp_path, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    log = run.stdout.decode(errors="replace")
    assert run.returncode == 0, log[-2000:]
    assert "Overfull \\hbox" not in log
    assert (tmp_path / "document.pdf").stat().st_size > 10_000


def renamed(summary: Summary, name: str) -> Summary:
    """``summary`` with its first method called ``name``."""
    names = {method: method for method in summary.methods} | {summary.methods[0]: name}
    samplers = {names[m]: sampler + name for m, sampler in summary.conditions.samplers.items()}
    return replace(
        summary,
        methods=tuple(names.values()),
        cells={(names[m], s): c for (m, s), c in summary.cells.items()},
        conditions=replace(summary.conditions, samplers=samplers),
    )


@pytest.mark.parametrize(
    ("value", "spread", "shown"),
    [(12.345, math.nan, "12.3"), (12.345, 0.01, "12.35"), (1.2e-7, math.nan, "1.2e-07"),
     (-3.4e-5, 1e-6, "-3.4e-05"), (-0.0, math.nan, "0.00"), (2.5e5, 1.0, "2.5e+05")],
)  # fmt: skip
def test_numbers_keep_three_digits(value: float, spread: float, shown: str) -> None:
    assert formatting.number(value, spread) == shown
