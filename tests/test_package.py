"""The wheel: built from the tree as it is, installed elsewhere, run from unfriendly folders."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import venv
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from helpers.commands import TINY, environment

import fewstep

ROOT = Path(fewstep.__file__).resolve().parents[2]
ROOMS = ("objectives", "backbones", "experiments", "sweeps", "analysis", "reports")
SHADOW = "raise ImportError('this is the folder of somebody else')\n"


def run(*command: object, cwd: Path) -> str:
    """Stdout of ``command``; fails the test, with all it said, unless it exits with 0."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of every file that git tracks or would track, links kept as links."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    clone = tmp_path_factory.mktemp("clone")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, run(*listing, cwd=ROOT).split("\0")):
        if not (ROOT / name).is_symlink() and not (ROOT / name).exists():
            continue  # removed, not yet committed
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=clone)
    (made,) = (clone / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed ``fewstep`` of a fresh environment that sees our dependencies, not our tree."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    # a path alone: a .pth there (the editable fewstep's) is not read through this one
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin/python"
    target = ["--no-deps", "--no-index", "--no-compile", "--force-reinstall"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *target, wheel, cwd=folder)
    where = run(python, "-P", "-c", "import fewstep; print(fewstep.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(site)
    return folder / "bin/fewstep"


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A folder with packages of the same names as our rooms."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(SHADOW)
    return tmp_path


def test_content(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "fewstep",
        f"fewstep-{fewstep.__version__}.dist-info",
    }
    for room in ROOMS:
        here = {p.name for p in (ROOT / room).glob("*.py")}
        there = {Path(n).name for n in names if re.fullmatch(rf"fewstep/{room}/[^/]+\.py", n)}
        assert there == here
    assert "fewstep/py.typed" in names
    assert "fewstep/experiments/config/run.yaml" in names
    assert "fewstep/sweeps/presets/digits.yaml" in names
    assert "fewstep/sweeps/presets/papers/shortcut_celeba_hq.yaml" in names
    for file in (
        "figures/fewstep.mplstyle",
        "content/published.csv",
        "html/templates/report.html.j2",
    ):
        assert f"fewstep/reports/{file}" in names
    assert not [name for name in names if "tests" in name.split("/")]


def test_help_list_training_and_sweep(command, shadowed):
    before = set(os.listdir(shadowed))
    assert "Compare few-step generative objectives" in run(command, "--help", cwd=shadowed)
    assert "digits" in run(command, "list", "sweeps", cwd=shadowed)
    assert set(os.listdir(shadowed)) == before
    given = ["training.steps=5", "evaluation.steps=[1]"]
    told = run(command, "train", *TINY, *given, cwd=shadowed)
    assert re.search(r"^FD-gaussians-raw@\d+ +1 +1 +ema", told, re.M)
    (shadowed / "tiny.yaml").write_text("axes: {objective: [flow_matching, consistency]}\n")
    told = run(command, "sweep", "tiny.yaml", *TINY, *given, cwd=shadowed)
    assert told.count("\ndone objective=") == 2
    assert "MLflow at sqlite:///" in told
    assert (shadowed / "runs/tiny/report/fd_vs_nfe.png").stat().st_size
    assert set(os.listdir(shadowed)) == before | {"runs", "tiny.yaml"}
    every_record_names_the_version(shadowed / "runs")


def every_record_names_the_version(root: Path) -> None:
    """Of the sweep, its launch and report, each run, its cells, and MLflow."""
    said = f'"fewstep": "{fewstep.__version__}"'
    spec, result, *_ = (*root.glob("tiny/*/spec.json"), *root.glob("tiny/*/result.json"))
    cells = list(root.glob("tiny/*/evaluations/*.json"))
    sweep = [
        root / "tiny" / name for name in ("sweep.json", "launch.json", "report/provenance.json")
    ]
    assert [f for f in (spec, result, *cells, *sweep) if said not in f.read_text()] == []
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        tags = store.execute("SELECT value FROM tags WHERE key = 'fewstep.version'").fetchall()
    assert tags == [(fewstep.__version__,)] * 2
