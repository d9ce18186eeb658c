"""The example of a third party's objective: installed as it stands, checked, trained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import TINY, environment

EXAMPLE = Path(__file__).parents[1] / "examples" / "fewstep-cosine"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its metadata, as pip puts them there."""
    source = tmp_path_factory.mktemp("source") / "example"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    target = tmp_path_factory.mktemp("target")
    given = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *given, "--target", target, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment())
    assert done.returncode == 0, done.stderr
    return target


def fewstep(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "fewstep", *arguments],
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(installed)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_it_passes_every_check(installed: Path, tmp_path: Path) -> None:
    done = fewstep(installed, tmp_path, "check", "objective=cosine", "objective.power=0.8")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = dict(re.findall(r"^(\S.*?) {2,}(holds|not taken)", done.stdout, re.M))
    assert (
        verdicts["path"] == verdicts["least at the ideal"] == verdicts["exact samples"] == "holds"
    )
    assert verdicts["velocity"] == "holds"
    assert "fails" not in done.stdout


def test_it_is_listed_and_trains(installed: Path, tmp_path: Path) -> None:
    told = fewstep(installed, tmp_path, "list", "objectives").stdout
    assert re.search(r"^cosine +Regress the velocity of the cosine path", told, re.M)
    given = ["objective=cosine", *TINY, "training.steps=5", "evaluation.steps=[1,2]"]
    done = fewstep(installed, tmp_path, "train", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^FD-gaussians-raw@\d+ +\d", done.stdout, re.M)) == 2


def test_bad_settings_of_it_are_refused(installed: Path, tmp_path: Path) -> None:
    done = fewstep(installed, tmp_path, "check", "objective=cosine", "objective.powr=2")
    assert done.returncode == 2
    assert "did you mean 'objective.power'" in done.stderr
