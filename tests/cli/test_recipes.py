"""Recipes of papers through the real command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.commands import fewstep, succeed, tree

SWEEP = """
base: {backbone.width: 16, backbone.depth: 1, backbone.heads: 2}
axes:
  objective: [shortcut]
  backbone.patch: [2, 3]
seeds: 2
"""


def test_smoke_prints_a_line_a_member_and_fails_if_one_does(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SWEEP)
    before = tree(tmp_path)
    done = fewstep("sweep", "small.yaml", "--smoke", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    fits = r"objective=shortcut backbone.patch=2: [\d,]+ parameters, [\d.]+ s, OK"
    assert re.fullmatch(fits, lines[0])
    assert lines[1].endswith("failed: backbone.patch must divide the image's side 8, got 3")
    assert tree(tmp_path) == before
    both = fewstep("sweep", "small.yaml", "--smoke", "--plan", cwd=tmp_path)
    assert (both.returncode, both.stdout) == (2, "")
    assert "without --plan" in both.stderr
    assert succeed("sweep", "small.yaml", "--smoke", "backbone.patch=2", cwd=tmp_path)


def test_a_recipe_is_planned_without_its_data(tmp_path: Path) -> None:
    said = succeed("sweep", "papers/scm_cifar10", "--plan", cwd=tmp_path)
    assert said.startswith("sweep scm_cifar10: 3 runs (3 new,")
    assert "cifar10 not found: looked in /" in said
    assert "a launch here would be refused: its data cannot be loaded" in said
    assert not list(tmp_path.iterdir())


def test_diff_shows_run_paper_and_source(vectors: Path) -> None:
    key = next(vectors.glob("runs/*/*/spec.json")).parent.name
    said = succeed("recipe", "diff", key, "papers/shortcut_celeba_hq", cwd=vectors)
    assert said.startswith(f"run {key} and recipe papers/shortcut_celeba_hq, objective=Flow matc")
    rows = [line.split() for line in said.splitlines()]
    (steps,) = (row for row in rows if row[:1] == ["training.steps"])
    assert steps[1:3] == ["20", "410000"]
    assert len(steps) > 3
    assert "what fewstep cannot do" in said
    said = succeed("recipe", "diff", key, "ict_cifar10", cwd=vectors)
    assert "the nearest: it has no run of this objective" in said


@pytest.mark.parametrize("recipe", ["digits", "papers/shortcut"])
def test_what_is_no_recipe(vectors: Path, recipe: str) -> None:
    key = next(vectors.glob("runs/*/*/spec.json")).parent.name
    done = fewstep("recipe", "diff", key, recipe, cwd=vectors)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "papers/shortcut_celeba_hq" in done.stderr
