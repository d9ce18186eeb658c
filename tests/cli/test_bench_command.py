"""``fewstep bench``: its table, its file, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import registered

from fewstep.cli.app import main
from fewstep.cli.views import cost_table
from fewstep.experiments.cost.step_benchmark import Cost, Regression
from fewstep.objectives import OBJECTIVES

POINTS = ["data=gaussians", "backbone.width=16", "backbone.depth=1", "--batch", "16"]


@dataclass(frozen=True)
class Modest(Regression):
    """Claims to cost half of what it costs."""

    def jump(self, net: Any, x_t: Any, t: Any, u: Any, y: Any) -> Any:
        return x_t - net(x_t, t, y=y)

    def step_cost(self) -> float:
        return 0.5


def run(monkeypatch, capsys, *words: str) -> list[str]:
    monkeypatch.setattr("sys.argv", ["fewstep", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out.splitlines()


def test_every_objective_is_counted_by_default(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, *POINTS, "--flops-only")
    assert "mlp on 2" in "\n".join(lines)
    header = next(
        i for i, line in enumerate(lines) if line.split() == ["objective", "FLOPs", "stated"]
    )
    rows = [line.split() for line in lines[header + 1 :]][: len(OBJECTIVES.names())]
    assert [row[0] for row in rows] == OBJECTIVES.names()
    flow = rows[OBJECTIVES.names().index("flow_matching")]
    assert flow[1:] == ["1.000", "1.000"]


def test_the_file_holds_what_the_table_shows(monkeypatch, capsys, tmp_path):
    file = tmp_path / "costs.json"
    words = ["objective=[shortcut,flow_matching]", *POINTS, "--rounds", "2", "--device", "cpu"]
    lines = run(monkeypatch, capsys, *words, "--peak-tflops", "2", "--json", str(file))
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["costs"]] == ["shortcut", "flow_matching"]
    assert record["batch"] == 16
    assert record["shape"] == [2]
    assert record["rounds"] == 2
    assert record["backbone"]["width"] == 16
    assert record["versions"]["torch"]
    assert record["host"]
    assert record["device"].startswith("cpu (")
    for row in record["costs"]:
        assert row["images_per_second"] == pytest.approx(16 / row["seconds"])
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / 2e12)
        (shown,) = [line for line in lines if line.startswith(row["name"] + " ")]
        assert f"{row['multiple']:.3f}" in shown
        assert f"{row['time']:.2f}" in shown
        assert f"{1e3 * row['seconds']:.1f}" in shown
        assert f"{row['mfu']:.1%}" in shown


def test_settings_of_objective_and_backbone(monkeypatch, capsys, tmp_path):
    file = tmp_path / "costs.json"
    words = ["objective=shortcut", "objective.bootstrap_share=0.5", "backbone=dit_digits"]
    words += ["--shape", "4,16,16", "--classes", "7", "--flops-only", "--json", str(file)]
    run(monkeypatch, capsys, *words, "backbone.depth=1", "--batch", "8", "--at", "0.5")
    record = json.loads(file.read_text())
    assert record["costs"][0]["stated"] == pytest.approx(4 / 3)
    assert record["costs"][0]["multiple"] == pytest.approx(4 / 3, rel=0.03)
    assert (record["shape"], record["num_classes"], record["at"]) == ([4, 16, 16], 7, 0.5)
    assert record["rounds"] == 0


def test_random_data_needs_no_data_set(monkeypatch, capsys, tmp_path):
    # MNIST's files are not here, and nothing but their shape would be taken from them
    monkeypatch.chdir(tmp_path)
    words = ["objective=flow_matching", "data=mnist", "--shape", "1,28,28", "--flops-only"]
    lines = run(monkeypatch, capsys, *words, "--batch", "2", "backbone.depth=1")
    assert any("dit_mnist on 1x28x28, batch 2" in line for line in lines)


def test_a_cost_above_the_stated_one_is_marked(monkeypatch, capsys):
    with registered("objective", "modest", Modest()):
        lines = run(monkeypatch, capsys, "objective=modest", *POINTS, "--flops-only")
    assert any(line.split() == ["modest", "1.000", "0.500", "!"] for line in lines)
    assert lines[-1] == "! more than 3% above what the objective states: modest +100.0%"


def test_an_objective_that_states_nothing():
    assert cost_table.stated(Cost("a", "A", 1, 1.0, None)) == "-"


REFUSED: dict[str, str | list[str]] = {
    "objective=scmm": "unknown objective 'scmm'; did you mean 'scm'?",
    "objective=[]": "objective=[] names none",
    "objective=scm,ect": "a list is written [a,b]",
    "objective=scm objective.finest=4": "unknown setting 'objective.finest'",
    "training.batch_size=3": "unknown setting 'training.batch_size' of bench (choices: backbone,",
    "backbone=dit": "unknown backbone 'dit'",
    "objective=scm data=digits backbone=mlp": "backbone mlp needs vectors (D,)",
    "--shape 1,9": "--shape takes C,H,W or D, sizes of at least 1, got '1,9'",
    "--shape 1,0,9": "--shape takes C,H,W or D, sizes of at least 1, got '1,0,9'",
    "--shape big": "--shape takes C,H,W or D, sizes of at least 1, got 'big'",
    "objective=scm --batch 0": "--batch must be at least 1, got 0",
    "--rounds 0": "--rounds must be at least 1, got 0",
    "objective=scm --at 2": "--at must be at least 0 and at most 1, got 2.0",
    "objective=scm --classes -1": "--classes must be at least 0, got -1",
    "objective=scm --precision fp8": "unknown --precision 'fp8' (choices: bfloat16, float32)",
    "objective=scm --device meta": "unknown --device 'meta' (choices: auto, cpu, cuda, mps)",
    "objective=scm --device cudaa": "unknown --device 'cudaa'; did you mean 'cuda'?",
    "objective=scm --batch 1000000000000": "a batch does not fit into the memory of cpu with",
    "--peak-tflops 0": ["--peak-tflops must be", "greater than 0, got 0.0"],
    "--json no/costs.json": "--json 'no/costs.json': no folder",
    "--json .": "--json '.': cannot be written",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input(monkeypatch, capsys, tmp_path: Path, words: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fewstep", "bench", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    told = REFUSED[words]
    for part in [told] if isinstance(told, str) else told:
        assert part in captured.err
    assert not list(tmp_path.iterdir())
