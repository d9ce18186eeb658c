"""The examples of library use run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers.commands import DEPRECATED, WARNING_ENVIRONMENT, environment

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(cwd: Path, name: str, *arguments: str) -> str:
    """What the example prints, run in an empty folder."""
    command = [sys.executable, "-P", str(EXAMPLES / name), *arguments]
    shown = environment() | WARNING_ENVIRONMENT
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=shown)
    assert done.returncode == 0, done.stderr
    assert DEPRECATED not in done.stderr
    return done.stdout


def test_own_loop(tmp_path: Path) -> None:
    said = output(tmp_path, "own_loop.py", "--steps", "40", "--picture", "p.png")
    means = dict(re.findall(r"^(.+): mean (-?[\d.]+), std [\d.]+$", said, re.M))
    assert list(means) == ["data", "steps=1", "steps=4"]
    assert abs(float(means["steps=1"]) - float(means["data"])) < 0.3  # noise has mean 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_own_network(tmp_path: Path) -> None:
    given = [
        "training.steps=300",
        "training.batch_size=256",
        "evaluation.steps=[4]",
        "data.samples=1024",
    ]
    said = output(tmp_path, "own_network.py", *given)
    (distance,) = re.findall(r"^steps=4: FD-spiral-raw@1024 = ([\d.]+)$", said, re.M)
    assert float(distance) < 0.2  # of noise it is about 1
    assert output(tmp_path, "own_network.py", *given) == said  # the run is done
    assert len(list((tmp_path / "runs" / "train").iterdir())) == 1
