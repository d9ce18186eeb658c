"""train, evaluate and sample through the real command line."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import TINY, environment, fewstep, succeed, tree
from PIL import Image

GIVEN = ("objective=scm", "data=digits", "training.steps=5", "seed=1", "evaluation.steps=[1]")
SMALL = ("backbone.width=16", "backbone.depth=1", "backbone.heads=2", "evaluation.extractor=raw")
ANSI = "\x1b"


def only_run(root: Path) -> Path:
    (spec,) = root.glob("*/*/spec.json")
    return spec.parent


def test_train_as_it_reads_and_again(tmp_path):
    told = succeed("train", *GIVEN, *SMALL, cwd=tmp_path)
    run = only_run(tmp_path / "runs")
    lines = told.splitlines()
    assert any(re.fullmatch(r"sCM train 5/5, [\d.]+ steps/s, 0:00 left", line) for line in lines)
    assert re.search(r"^FD-digits-raw@597 +1 +1 +ema +1 +0 +[\d.]+ +[\d.]+$", told, re.M)
    assert f"run: runs/train/{run.name}" in lines
    assert ANSI not in told
    assert re.search(
        r"^data digits: \w{12} \(1,200 train and 597 held-out examples, 10", told, re.M
    )
    spec = json.loads((run / "spec.json").read_text())
    assert (spec["key"], spec["title"], spec["config"]["seed"]) == (run.name, "sCM", 1)
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["images_seen"]) == (5, 5 * 128)
    assert len(list((run / "evaluations").iterdir())) == 1

    before = tree(tmp_path)
    again = succeed("train", *GIVEN, *SMALL, cwd=tmp_path)
    assert again.startswith(f"runs/train/{run.name} is trained already; nothing is repeated\n")
    assert "FD-digits-raw@597" in again
    assert " train " not in again
    assert tree(tmp_path) == before


def test_run_root_with_a_space_either_way(tmp_path):
    steps = ("training.steps=2", "evaluation.steps=[]")
    first = succeed("train", *TINY, *steps, "runs=my runs/here", cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["my runs"]
    before = tree(tmp_path)
    second = succeed("train", *TINY, *steps, "--runs", tmp_path / "my runs/here", cwd=tmp_path)
    assert "is trained already" in second
    assert tree(tmp_path) == before
    key = only_run(tmp_path / "my runs/here").name
    assert f"run: my runs/here/train/{key}" in first
    for root in (["runs=my runs/here"], ["--runs", "my runs/here"]):
        assert key in succeed("status", "train", *root, cwd=tmp_path)


@pytest.fixture
def vector_run(vectors, tmp_path) -> Path:
    shutil.copytree(vectors / "runs", tmp_path / "runs")
    return sorted(tmp_path.glob("runs/train/*/spec.json"))[0].parent


def cells(run: Path) -> list[tuple[int, str, int]]:
    """(steps, solver, NFE) of each evaluated cell."""
    records = [json.loads(p.read_text()) for p in (run / "evaluations").iterdir()]
    return sorted((r["cell"]["steps"], r["cell"]["sampler"]["solver"], r["nfe"]) for r in records)


def test_evaluate_adds_cells_without_training(vector_run, tmp_path):
    assert cells(vector_run) == [(1, "euler", 1)]
    told = json.loads((vector_run / "progress.json").read_text())  # what status goes by
    assert (told["phase"], told["done"] == told["total"]) == ("evaluate", True)
    kept = [vector_run / "result.json", vector_run / "spec.json", vector_run / "metrics.jsonl"]
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in kept}
    checkpoints = tree(vector_run / "checkpoints")

    named = f"train/{vector_run.name[:6]}"  # as reports name it, or the key alone
    told = succeed("evaluate", named, "evaluation.steps=[3]", cwd=tmp_path)
    assert re.search(r"^FD-gaussians-raw@\d+ +3 +3 +ema", told, re.M)
    assert cells(vector_run) == [(1, "euler", 1), (3, "euler", 3)]
    succeed("evaluate", vector_run, "evaluation.steps=[3]", "objective.solver=heun", cwd=tmp_path)
    assert (3, "heun", 6) in cells(vector_run)  # Heun asks the network twice a step

    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in kept} == before
    assert tree(vector_run / "checkpoints") == checkpoints


def test_sample_writes_a_picture(images, tmp_path):
    run = only_run(images / "runs")
    output = tmp_path / "grid.png"
    told = succeed("sample", run.name[:6], "--steps", 2, "--out", output, cwd=images)
    assert f"64 samples, 2 network calls each: {output}" in told
    with Image.open(output) as picture:
        size, pixels = picture.size, np.asarray(picture.convert("L"))
    assert size[0] == size[1]  # 8 by 8 samples of 8 by 8 pixels, enlarged
    assert size[0] >= 64
    assert pixels.std() > 10
    assert not (run / "evaluations").stat().st_mtime_ns > output.stat().st_mtime_ns

    same = tmp_path / "same.png"
    few = ("sample", run, "--steps", 2, "--out", same, "--count", 16)
    succeed(*few, cwd=tmp_path)
    with Image.open(same) as picture:
        assert picture.size[0] == picture.size[1] < size[0]
    mixed = same.read_bytes()
    succeed(*few, "--class", 7, cwd=tmp_path)
    assert same.read_bytes() != mixed


def test_interrupted_and_failed_training_are_told_in_a_line(tmp_path):
    given = ("training.steps=100000", "evaluation.steps=[]")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fewstep", "train", *TINY, *given],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("data gaussians: ")
    process.stdout.readline()  # the first progress line, after 10 seconds of it
    process.send_signal(2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert re.fullmatch(r"interrupted: stopped at step \d+ of 100000; the same .*\n", err)
    assert list(only_run(tmp_path / "runs").glob("checkpoints/step-*"))

    failed = fewstep("train", *TINY, "training.lr=1e30", "runs=other", cwd=tmp_path)
    assert failed.returncode == 1
    first, second = failed.stderr.splitlines()
    assert first == "failed: nan: the loss or its gradient is not finite at step 2"
    assert (
        second == f"recorded in {only_run(tmp_path / 'other').relative_to(tmp_path)}/failure.json"
    )


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    given = ("training.steps=5", "evaluation.steps=[1]")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fewstep", "train", *TINY, *given],
        cwd=tmp_path,
        env=environment() | {"TERM": "xterm", "COLUMNS": "60", "LINES": "20"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    text = seen.decode()
    assert process.wait(timeout=60) == 0, text
    assert ANSI in text
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert re.search(r"Flow matching train.*5/5", plain)
    assert re.search(r"Flow matching evaluate.*100%", plain)
    assert "steps/s" in plain
    assert "Traceback" not in plain
