"""``fewstep report A B``, ``fewstep compare`` and ``fewstep bench analysis``, as typed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.synthetic_runs import Run, write_sweep

from fewstep.cli.app import main
from fewstep.cli.benchmarks import analysis

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """``main`` in this process, among two sweeps: its exit code, and what it said."""
    old = [Run(m, s, {1: v + s}) for m, v in (("FM", 8.0), ("sCM", 4.0)) for s in range(3)]
    new = [Run(m, s, {1: v + s}) for m, v in (("FM", 4.0), ("CT", 5.0)) for s in range(3)]
    write_sweep(tmp_path / "runs", old, name="old")
    write_sweep(tmp_path / "runs", new, name="new")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_a_report_over_two_sweeps(command: Command, tmp_path: Path) -> None:
    code, said, _ = command("report", "old", "new")
    assert code == 0
    together = tmp_path / "runs" / "_reports" / "old+new"
    for line in ("FM · sweep=old", "FM · sweep=new", "| sCM |", "| CT |"):
        assert line in (together / "table.md").read_text()
    assert "sweep=old" in said
    # FM's runs have the same keys in both
    shared = "3 runs are in two of the sweeps: rows that share runs are not independent."
    assert shared in (together / "table.md").read_text()
    assert "Not all methods" not in (together / "table.md").read_text()
    with (together / "costs.csv").open() as file:
        assert {row["method"]: row["runs"] for row in csv.DictReader(file)} == dict.fromkeys(
            ["FM · sweep=old", "FM · sweep=new", "sCM", "CT"], "3"
        )
    made = json.loads((together / "provenance.json").read_text())
    assert len(made["runs"]) == 12
    cells = {cell["method"]: [r["run"] for r in cell["runs"]] for cell in made["cells"]}
    assert cells["FM · sweep=new"] == [f"new/fm-s{s}" for s in range(3)]
    assert cells["FM · sweep=old"] == [f"old/fm-s{s}" for s in range(3)]
    assert command("report", "old", "runs=runs", "--out", "here")[0] == 0  # an override, no name
    assert (tmp_path / "here" / "runs.parquet").stat().st_size
    assert "old  " in command("status")[1]  # what was written is no sweep
    assert "_reports" not in command("status")[1]


def test_a_report_of_each_where_several_could_stand(command: Command, tmp_path: Path) -> None:
    for file in list((tmp_path / "runs/new").glob("*/evaluations/*.json")):
        record = json.loads(file.read_text())
        raw = {**record, "cell": {**record["cell"], "weights": "raw"}, "value": 70.0}
        file.with_name("zz.json").write_text(json.dumps(raw))
    code, _, told = command("report", "new")
    assert (code, told.count("\n")) == (2, 1)
    assert "a table holds one weights, got ema and raw; choose with --weights" in told
    assert not (tmp_path / "runs/new/report").exists()
    assert command("report", "new", "--weights", "raw")[0] == 0
    (tmp_path / "runs/new/report/notes.txt").write_text("mine")
    code, said, _ = command("report", "new", "--each")
    assert code == 0
    made = {p.name for p in (tmp_path / "runs/new/report").iterdir()}
    assert made == {"notes.txt", "weights-ema", "weights-raw"}  # that of one choice went
    assert "weights raw:" in said
    ema, raw = (tmp_path / f"runs/new/report/weights-{w}/table.md" for w in ("ema", "raw"))
    assert "EMA weights" in ema.read_text()
    assert "70.0 ± 0" in raw.read_text()
    assert "70.0 ± 0" not in ema.read_text()
    (tmp_path / "runs/new/report/weights-raw/notes.txt").write_text("mine")
    assert command("report", "new", "--weights", "raw")[0] == 0
    made = {str(p.relative_to(tmp_path / "runs/new/report"))
            for p in (tmp_path / "runs/new/report").rglob("*")}  # fmt: skip
    assert {"table.md", "notes.txt", "weights-raw/notes.txt"} <= made
    assert not {"weights-ema", "weights-raw/table.md"} & made


def test_what_is_wrong_with_a_report_is_told_before_anything(command: Command) -> None:
    for option in ("--baseline", "--published"):
        code, said, told = command("report", "new", option, "nobody")
        assert (code, said, told.count("\n")) == (2, "", 1)


def test_the_status_names_metrics_where_there_are_several(command: Command, tmp_path: Path) -> None:
    assert "FD at steps" in command("status", "new")[1]
    [cell] = (tmp_path / "runs/new/fm-s0/evaluations").glob("*.json")
    record = json.loads(cell.read_text())
    record["metric"] |= {"label": "FD-digits-raw@64", "id": "0123"}
    cell.write_text(json.dumps(record))
    said = command("status", "new")[1]
    assert "result at steps" in said
    assert "FD-digits-raw@64  1: 4.00" in said
    assert said.count("FD-digits-cnn@597") == 5


def test_two_sweeps_compared(command: Command, tmp_path: Path) -> None:
    code, said, _ = command("compare", "new", "old", "--out", "made")
    assert code == 0
    assert "new / old" in said
    # geometric mean of 4/8, 5/9, 6/10
    assert "0.550" in said
    assert "0.550" in (tmp_path / "made" / "comparison.md").read_text()
    assert (tmp_path / "made" / "comparison.csv").read_text().count("\n") == 2
    assert "FM & 0.550 {[}" in (tmp_path / "made" / "comparison.tex").read_text()
    code, said, _ = command("compare", "old", "--baseline", "FM")
    assert code == 0
    assert "sCM / FM" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compare old", "choices: FM, sCM"),
        ("compare old old", "sweep 'old' is named twice"),
        ("compare old nwe", "/runs/; did you mean 'new'?"),
        ("compare old new --method sCM", "no method in common"),
        ("compare old new --baseline sCM", "unknown method 'sCM' of sweep 'new'"),
        ("report old new seed=3", "takes no override but runs=DIR, got 'seed=3'"),
        ("report old new --weights raw", "no cells with weights 'raw' (choices: ema)"),
    ],
)
def test_bad_input_is_one_line(command: Command, words: str, told: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, said, error = command(*words.split())
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert sorted(tmp_path.rglob("*")) == before


def test_three_sweeps_are_not_compared(command: Command, tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", [Run("FM", 0, {1: 1.0})], name="third")
    assert "one or two sweeps are compared, got 3" in command("compare", "old", "new", "third")[2]


def test_the_bench_measures_a_store_of_real_files(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "RUNS", 60)
    code, out, err = command("bench", "analysis", "--json", "found.json")
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["runs"], found["cells"]) == (60, 60 * 12)
    assert 0 < found["frame (s)"] < found["all (s)"]
    assert found["peak memory of this process (MB)"] > 50
    assert "60 runs, 720 cells" in out
