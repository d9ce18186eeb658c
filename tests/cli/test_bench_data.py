"""``fewstep bench data``: what it measures, as far as that is no matter of speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.cli.app import main

LITTLE = ("backbone.width=16", "backbone.depth=1", "backbone.heads=2")


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["fewstep", "bench", "data", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_memory_files_and_disk_against_a_step(monkeypatch, capsys, tmp_path: Path):
    file = tmp_path / "speeds.json"
    words = ("data=digits", *LITTLE, "--rounds", "1", "--batch", "16", "--json", str(file))
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "digits, dit_digits on 1x8x8, 10 classes, batch 16" in out
    record = json.loads(file.read_text())
    names = [speed["where"] for speed in record["speeds"]]
    assert names[:2] == ["memory", "memory-mapped"]
    for speed in record["speeds"]:
        assert speed["loaded"] > 0
        assert speed["trained"] > 0
        assert 0 <= speed["waits"] <= 1
        (line,) = [line for line in out.splitlines() if line.startswith(f"{speed['where']}  ")]
        assert f"{speed['trained'] / speed['loaded']:.1%}" in line
    assert record["data"]["name"] == "digits"
    assert record["host"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("training.steps=3", "unknown setting 'training.steps' of bench data (choices: backbone,"),
        ("data=digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("data=image_folder data.root=nowhere", "/nowhere/images (data.folder="),
        ("--rounds 0", "--rounds must be at least 1, got 0"),
        ("--device meta", "unknown --device 'meta' (choices: auto, cpu, cuda, mps)"),
        ("--batch 1000000000000", "a batch does not fit into the memory of cpu with --batch 1000"),
        ("--json no/speeds.json", "no folder"),
    ],
)
def test_bad_input(monkeypatch, capsys, tmp_path: Path, words: str, told: str):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *words.split())
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
