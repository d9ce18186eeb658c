"""Groups, published rows, costs, methods and provenance say what the runs recorded."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_run, write_sweep

from fewstep.analysis import compare, load, summarise
from fewstep.analysis.costs import costs, improvement
from fewstep.analysis.filters import select
from fewstep.errors import UserError
from fewstep.reports.content import methods, provenance
from fewstep.reports.content.published import apart
from fewstep.reports.figures.axis_ticks import linear_ticks, log_ticks, short
from fewstep.reports.figures.chart_data import compute_measures
from fewstep.reports.figures.drawing import fd_vs_compute, seed_plot
from fewstep.reports.html import page as html
from fewstep.reports.report import views_of, write_report
from fewstep.reports.tables import comparison, plain, published_table, quality
from fewstep.reports.tables import costs as cost_tables

HOSTILE = r"50%_&\~^#${}|<script>x</script>*x* `c` [b]--π 中"
TRAINING = {"steps": 500, "batch_size": 128, "lr": 2e-3, "betas": [0.9, 0.99], "eps": 1e-8,
            "weight_decay": 0.1, "schedule": "cosine", "warmup": 50, "clip": 1.0, "ema": 0.99,
            "label_dropout": 0.0, "precision": "float32"}  # fmt: skip
MADE = {"lock": "abcdefabcdef", "fewstep": "0.1", "versions": {"torch": "2.13"}, "dirty": True,
        "device_name": "H200", "job": {"launcher": "slurm", "id": "7_1"}}  # fmt: skip


def runs(name: str = "FM") -> list[Run]:
    muon = {"name": "muon", "momentum": 0.9}
    rates = {
        "lr": 1e-4,
        "auxiliary_lr": 1e-2,
        "companion_lr": 2e-2,
        "decay_from": 100,
        "optimiser": muon,
        "ema": [0.99, 0.999],
        "ema_warmup": False,
        "flip": True,
        "augment": 0.12,
    }
    other = {"training": {**TRAINING, **rates}, "objective": {"name": "ct", "target": "ema"}}
    return [
        *(Run(name, s, {1: 90.0 + s, 4: 10.0 + s}, objective="fm", config={"training": TRAINING},
              provenance=MADE) for s in range(3)),
        *(Run("CD", s, {1: 30.0 + s, 4: 20.0 + s}, teacher="fm-s0", seconds=100.0,
              config={"training": TRAINING}) for s in range(3)),
        *(Run("CT", s, failure="nan", config=other) for s in range(2)),
        Run("CT", 2, rungs={50: 9.0}, config=other),
    ]  # fmt: skip


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    return load(write_sweep(tmp_path, runs()))


def test_captions_tell_whose_weights_a_method_starts_from(tmp_path: Path) -> None:
    members = runs()
    directory = write_sweep(tmp_path, members)
    for file in directory.glob("cd-*/result.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "initialised": {"run": "fm-s0", "title": "FM"}}))
    summary = summarise(load(directory))
    assert "CD starts from the weights of a run of FM." in quality.markdown(summary)
    assert "weights of a run" not in quality.markdown(summary.only(["FM", "CT"]))
    told = " ".join(methods.paragraphs(summary, load(directory)))
    assert "CD starts from the weights of a run of FM." in told
    assert ", taught by FM." in told
    for taught, first in ((False, "FM"), (True, None)):
        for file in directory.glob("cd-*/result.json"):
            start = {"initialised": first and {"run": "fm-s0", "title": first}, "taught": taught}
            file.write_text(json.dumps({**json.loads(file.read_text()), **start}))
        summary = summarise(load(directory))
        told = " ".join(methods.paragraphs(summary, load(directory)))
        assert (", from the weights of FM." in told) == (not taught)
        random = "CD starts from random weights, not its teacher's."
        assert (random in quality.markdown(summary)) == taught


def test_rows_stand_in_groups(frame: pd.DataFrame) -> None:
    summary = summarise(frame)
    lines = quality.markdown(summary).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:8]] == [
        "| *One phase*", "| FM", "| CT", "| *Two phases (needs a finished run)*", "| CD",
        "| *real vs real floor*"]  # fmt: skip
    assert "failed (2/3), stopped (1/3)" in lines[4]
    assert r"\multicolumn{3}{l}{\textit{One phase}}" in quality.latex(summary)
    rows = list(csv.DictReader(io.StringIO(quality.csv(summary))))
    assert {(r["method"], r["group"], r["stopped"]) for r in rows} == {
        ("FM", "one-phase", "0"), ("CT", "one-phase", "1"), ("CD", "two-phase", "0")}  # fmt: skip
    alone = summarise(frame[frame["method"] != "CD"])
    assert "One phase" not in quality.markdown(alone)  # one group needs no name


def test_cost_tables(frame: pd.DataFrame) -> None:
    summary = summarise(frame)
    found = costs(summary, frame)
    training, _, sampling, gain = cost_tables.tables(summary, found)
    by_method = {row[0]: dict(zip(training.header, row, strict=True)) for row in training.rows}
    assert by_method["FM"]["Speed"] == "baseline"
    assert by_method["CD"]["Speed"] == "−50%"
    assert by_method["CD"]["Images"] == "128,000 (64,000)"
    assert by_method["CD"]["Wall time"] == "2.50 min (50.0 s)"
    assert by_method["CT"]["Steps/s"] == "–"
    assert "H200" in training.note
    assert "the teacher's" in training.note
    assert sampling.rows[0] == ("FM", "300", "75.0")
    assert [row[0] for row in gain.rows] == ["CD", "CT"]
    assert gain.rows[0][1].startswith("66 [")
    assert gain.rows[0][2].startswith("−91 [−")
    rows = list(csv.DictReader(io.StringIO(cost_tables.csv(summary, found))))
    assert len(rows) == 6
    cd = next(r for r in rows if (r["method"], r["steps"]) == ("CD", "1"))
    assert float(cd["total_device_hours"]) == pytest.approx(150 / 3600)
    assert float(cd["improvement_percent"]) == pytest.approx(66, abs=1)
    assert "| CD | 123,456 | 5.00 | 0.200 | −50% |" in cost_tables.markdown(summary, found)


def test_the_methods_paragraph_is_exact(frame: pd.DataFrame) -> None:
    told = " ".join(methods.paragraphs(summarise(frame), frame))
    for fact in (
        "Training data: digits. Network: unet; 123,456 parameters.",
        "AdamW with betas 0.9 and 0.99, eps 1e-08, weight decay 0.1 (Muon (momentum=0.9) with "
        "betas 0.9 and 0.99, eps 1e-08, weight decay 0.1 for CT), learning rate 0.002 (learning "
        "rate 0.0001 and 0.01 of the auxiliary module and 0.02 of the companion for CT), linear "
        "warm-up over 50 steps, "
        "cosine schedule (linear warm-up over 50 steps, cosine schedule from step 100 for CT), "
        "gradient norm clipped at 1, horizontal flips for CT, EDM's augmentation with probability "
        "0.12 for CT.",
        "500 steps of 128 images (64,000 images).",
        "EMA decay 0.99 (0.99 without warm-up for CT); precision float32.",
        "Training seeds: 0, 1 and 2", "CT: objective ct (target=ema).",
        "CD: objective cd, taught by FM.", "metric a1b2c3d4e5f6", "597 samples against 1,200",
        "train split", "no guidance", "Sampler: solver=euler", "uniform steps",
        f"sha256 {'0123456789abcdef' * 4}", "all pairs of methods are compared", "at level 0.05",
        "Holm's method over all pairs and numbers of steps", "torch 2.13",
        f"commit {'c0ffee' * 6}", "packages abcdefabcdef", "3 of 9 runs", "H200",
    ):  # fmt: skip
        assert fact in told, fact


@pytest.mark.parametrize(
    ("better", "gain", "heat"),
    [("lower", -100.0, {"A": 1.0, "B": 0.0}), ("higher", 100.0, {"A": 0.0, "B": 1.0}),
     ("neither", None, {})],
)  # fmt: skip
def test_what_is_better_is_what_the_metric_says(
    tmp_path: Path, better: str, gain: float | None, heat: dict[str, float]
) -> None:
    runs = [Run(m, s, {1: v}) for m, v in (("A", 0.2), ("B", 0.4)) for s in range(2)]
    folder = write_sweep(tmp_path, runs)
    for file in folder.glob("*/evaluations/*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"better": better}))
    frame = load(folder)
    [view] = views_of(frame, {})
    assert ("t-tests" in " ".join(view.methods)) == (better != "neither")
    rows = {row.method: row for row in view.costs.rows}
    ratio = rows["B"].gain[1]
    assert (ratio is None) == (gain is None)
    if ratio is not None:
        assert improvement(ratio, better)[0] == pytest.approx(gain)
    assert {method: value for (method, _), value in html._heat(view).items()} == pytest.approx(heat)


def test_every_cell_resolves_to_its_runs(frame: pd.DataFrame, tmp_path: Path) -> None:
    summary = summarise(frame)
    found = provenance.origins(summary, select(frame, {}))
    told = json.loads(provenance.write(provenance.document(summary, frame, found)))
    assert len(told["runs"]) == 9
    known = {"commit": "c0ffee" * 6, "dirty": True, "lock": "abcdefabcdef", "job": "slurm 7_1",
             "host": "laptop", "device": "H200"}  # fmt: skip
    assert known.items() <= told["runs"]["demo/fm-s0"].items()
    assert told["runs"]["demo/ct-s2"]["failure_class"] == "stopped"
    cells = {(cell["method"], cell["steps"]): cell for cell in told["cells"]}
    assert cells.keys() == summary.cells.keys()
    assert [(r["seed"], r["value"], r["run"]) for r in cells["CD", 4]["runs"]] == [
        (s, 20.0 + s, f"demo/cd-s{s}") for s in range(3)]  # fmt: skip
    assert cells["CD", 4]["runs"][1]["command"].startswith(
        "fewstep train seed=1 'evaluation.steps=[4]'")  # fmt: skip
    assert (cells["CT", 1]["failed_seeds"], cells["CT", 1]["stopped_seeds"]) == ([0, 1], [2])


def test_the_command_of_a_mean_over_sample_sets_draws_them_all(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 2.0}, cell={"sample_set": 2})])
    for k in (1, 0):
        write_run(folder / "a-s0", Run("A", 0, {1: 2.0 + k}, cell={"sample_set": k}))
    frame = load(folder).iloc[::-1]  # files come by their names, not by their sets
    (view,) = views_of(frame, {})
    (cell,) = provenance.document(view.summary, frame, view.origins)["cells"]
    assert cell["mean"] == pytest.approx(7 / 3)
    assert "evaluation.sample_sets=3" in cell["runs"][0]["command"]


def test_who_evaluated_is_told_where_another_trained(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("A", s, {1: 2.0, 4: 1.0}) for s in range(2)])
    made = {"commit": "0ff1ce" * 6, "dirty": True, "lock": None, "host": "laptop"}
    file = folder / "a-s1" / "evaluations" / "steps4-ema-g1.0-s0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"provenance": made}))
    frame = load(folder)
    [view] = views_of(frame, {})
    told = provenance.document(view.summary, frame, view.origins)["cells"]
    by = {(c["steps"], r["seed"]): r.get("evaluated") for c in told for r in c["runs"]}
    assert by.pop((4, 1)) == {**made, "job": None}
    assert by == dict.fromkeys([(1, 0), (1, 1), (4, 0)])
    page = html.page("demo", [view], frame)
    assert page.count("0ff1ce" * 6) == 1


def test_compute_counts_the_teacher(frame: pd.DataFrame) -> None:
    summary, cells = summarise(frame), select(frame, {})
    (_, images), (_, hours) = compute_measures(summary, cells)
    assert (images["FM", 0], images["CD", 0]) == (64_000, 128_000)
    assert hours["CD", 0] == pytest.approx(150 / 3600)
    alone = cells[cells["method"] == "FM"]
    assert len(compute_measures(summary, alone)) == 1  # nothing differs: one is enough
    figure = fd_vs_compute(summary, cells)
    assert figure is not None
    drawn = [
        (line.get_xdata()[0], line.get_ydata()[0]) for a in figure.axes for line in a.lines
    ]  # fmt: skip
    assert (128_000, 31.0) in drawn  # CD's mean at one step
    assert (128_000, 21.0) in drawn
    assert (64_000, 91.0) in drawn


def test_a_line_joins_what_one_seed_gave(frame: pd.DataFrame) -> None:
    figure = seed_plot(summarise(frame))
    assert figure is not None
    one, four = figure.axes
    lines = [list(line.get_ydata()) for line in one.lines]
    assert [92.0, 32.0] in lines
    assert [90.0, 91.0, 92.0] in lines  # the method's marks
    assert [12.0, 22.0] in [list(line.get_ydata()) for line in four.lines]


def test_several_data_sets_are_never_in_one_table(tmp_path: Path) -> None:
    moons = {"data": "moons", "label": "FD-moons-raw@500", "id": "ffffffffffff"}
    other = [Run("FM", 0, {1: 1.0}, config={"data": {"name": "moons"}}, metric=moons,
                 choices={"data": "moons"})]  # fmt: skip
    frame = load(write_sweep(tmp_path, [*runs(), *other]))
    with pytest.raises(UserError, match=r"one metric, got FD-digits.* and FD-moons"):
        summarise(frame)
    files = write_report(frame, {}, tmp_path / "out")
    assert "FD-moons" not in files["digits/table.md"].read_text()
    assert "FD-digits" not in files["moons/table.md"].read_text()
    page = files["report.html"].read_text()
    assert "FD-moons" in page
    assert "FD-digits" in page


def test_round_numbers_on_axes() -> None:
    assert log_ticks(1.5, 30) == [2, 5, 10, 20]
    assert log_ticks(0.5, 3e6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6][::2]
    assert linear_ticks(24_000, 52_000, 4) == [30_000, 40_000, 50_000]
    assert linear_ticks(-1, 1, 4) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert [short(v) for v in (25_600, 1.5e6, 0.02, -3)] == ["25.6k", "1.5M", "0.02", "−3"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("layout", plain.LAYOUTS)
def test_latex_compiles_whatever_the_names(tmp_path: Path, layout: str) -> None:
    frame = load(write_sweep(tmp_path, runs(HOSTILE), name="50%_x"))
    (view,) = views_of(frame, {})
    (tmp_path / "table.tex").write_text(
        quality.latex(view.summary, apart(view.summary.conditions, "cifar10")[:8])
    )
    ours = view.summary.conditions
    others = apart(ours, "imagenet_256")
    (tmp_path / "published.tex").write_text(published_table.latex(others, ours))
    (tmp_path / "costs.tex").write_text(cost_tables.latex(view.summary, view.costs))
    (tmp_path / "methods.tex").write_text(methods.latex(view.methods))
    first = view.summary.methods[0]
    one = compare(view.summary, view.summary, None, first)
    (tmp_path / "comparison.tex").write_text(comparison.latex(one))
    inputs = ("table", "published", "costs", "methods", "comparison")
    (tmp_path / "all.tex").write_text(plain.latex_document(*inputs, layout=layout))
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    log = run.stdout.decode(errors="replace")
    assert run.returncode == 0, log[-2000:]
    assert "Overfull \\hbox" not in log
    assert "Float too large" not in log
