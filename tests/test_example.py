"""The examples of third-party packages: installed as they stand, and used."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import commands
from helpers.commands import DEPRECATED, TINY, WARNING_ENVIRONMENT, environment
from helpers.tiny import last_tensors

from fewstep.backbones.base import build_backbone
from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import RunDirectory

EXAMPLES = Path(__file__).parents[1] / "examples"
KINDS = {
    "metrics": "mean_shift",
    "data": "moons",
    "backbones": "plain_mlp",
    "extractors": "quadratic",
    "launchers": "nice",
    "optimisers": "sgd",
}
MOONS = """
base:
  data: moons
  data.noise: 0.05
  backbone: plain_mlp
  training.steps: 5
  training.batch_size: 16
  training.optimiser: {name: sgd, momentum: 0.8}
  evaluation.steps: [1]
  evaluation.extractor: quadratic
  evaluation.metrics: [{name: mean_shift, relative: true}]
  tracking.enabled: false
axes:
  training.lr: [1.0e-3, 1.0e+30]
nice: {level: 5}
"""
pytestmark = pytest.mark.xdist_group("examples")  # installed once


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and their metadata, as pip puts them there."""
    sources = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("*.egg-info", "build")
    names = ("fewstep-cosine", "fewstep-plugin")
    copies = [shutil.copytree(EXAMPLES / name, sources / name, ignore=unwanted) for name in names]
    target = tmp_path_factory.mktemp("target")
    given = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *given, "--target", target, *copies]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment())
    assert done.returncode == 0, done.stderr
    return target


def fewstep(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = {**environment(), **WARNING_ENVIRONMENT, "PYTHONPATH": str(installed)}
    done = commands.run(*arguments, cwd=cwd, environment=given)
    assert DEPRECATED not in done.stderr, done.stderr
    return done


def test_an_objective_passes_every_check(installed: Path, tmp_path: Path) -> None:
    done = fewstep(installed, tmp_path, "check", "objective=cosine", "objective.power=0.8")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = dict(re.findall(r"^(\S.*?) {2,}(holds|not taken)", done.stdout, re.M))
    assert {"path", "exact samples", "velocity"} <= {k for k, v in verdicts.items() if v == "holds"}
    assert "fails" not in done.stdout


def test_an_objective_is_listed_and_trains(installed: Path, tmp_path: Path) -> None:
    told = fewstep(installed, tmp_path, "list", "objectives").stdout
    assert re.search(r"^cosine +Regress the velocity of the cosine path", told, re.M)
    given = ["objective=cosine", *TINY, "training.steps=5", "evaluation.steps=[1,2]"]
    done = fewstep(installed, tmp_path, "train", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^FD-gaussians-raw@\d+ +\d", done.stdout, re.M)) == 2


def test_bad_settings_of_an_objective_are_refused(installed: Path, tmp_path: Path) -> None:
    done = fewstep(installed, tmp_path, "check", "objective=cosine", "objective.powr=2")
    assert done.returncode == 2
    assert "did you mean 'objective.power'" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_other_extensions_are_listed(installed: Path, tmp_path: Path, kind: str) -> None:
    listed = fewstep(installed, tmp_path, "list", kind).stdout
    assert re.search(rf"^{KINDS[kind]} +[xA-Z|]", listed, re.M), listed


def test_a_backbone_without_condition_vectors_says_so(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    backbone = importlib.import_module("fewstep_plugin.backbone").PlainMLP()
    network = build_backbone(backbone, (2,), 0, jump=False, condition_dim=0)
    assert network(torch.ones(3, 2), torch.ones(3)).shape == (3, 2)
    with pytest.raises(UserError, match="takes class labels only, got condition vectors of 4"):
        build_backbone(backbone, (2,), 0, jump=False, condition_dim=4)


def test_a_sweep_uses_a_launcher_a_metric_data_a_backbone_an_optimiser_and_an_extractor(
    installed: Path, tmp_path: Path
) -> None:
    example = EXAMPLES / "fewstep-plugin/moons.yaml"
    shown = fewstep(installed, tmp_path, "sweep", str(example), "--launcher", "nice", "--plan")
    assert re.search(r"^one after another at nice 5: \w{12}, \w{12}$", shown.stdout, re.M)
    (tmp_path / "moons.yaml").write_text(MOONS)
    sweep = ("sweep", "moons.yaml", "--launcher", "nice")
    planned = fewstep(installed, tmp_path, *sweep, "nice.level=7", "--plan")
    assert re.search(r"^one after another at nice 7: \w{12}, \w{12}$", planned.stdout, re.M)
    for words, message in {
        "nice.level=20": "nice.level must be at least 0 and at most 19, got 20",
        "nice.levl=3": "unknown setting 'levl' of nice; did you mean 'level'?",
        "resources.gpus=2": "asks for several processes",
        "data.noise=-1": "data.noise must be",
        "training.optimiser={name:sgd,momentum:1}": "training.optimiser.momentum must be",
    }.items():
        refused = fewstep(installed, tmp_path, *sweep, words)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["moons.yaml"]

    done = fewstep(installed, tmp_path, *sweep)
    assert done.returncode == 1, done.stdout + done.stderr  # one run has a NaN
    assert len(re.findall(r"^started training.lr=", done.stdout, re.M)) == 2
    folder = tmp_path / "runs/moons"
    (cell,) = [json.loads(file.read_text()) for file in folder.glob("*/evaluations/*.json")]
    metric = cell["metric"]
    assert (metric["name"], metric["extractor"], metric["data"]) == (
        "mean shift", "quadratic", "moons",
    )  # fmt: skip
    assert cell["value"] > 0
    (log,) = [run for run in folder.glob("*/log.txt") if (run.parent / "result.json").exists()]
    spec = json.loads((log.parent / "spec.json").read_text())
    assert spec["config"]["backbone"]["name"] == "plain_mlp"
    checkpoint = last_tensors(RunDirectory(log.parent))
    assert {name.split(".")[1] for name in checkpoint if name.startswith("optimiser.")} == {
        "momentum"
    }
    result = json.loads((log.parent / "result.json").read_text())
    assert len(result["provenance"]["optimiser_source"]) == 12  # its code is known for stale
    record = json.loads((folder / "launch.json").read_text())
    assert (record["launcher"], record["settings"]) == ("nice", {"level": 5})
    again = fewstep(installed, tmp_path, "retry", "moons", "--class", "nan")
    assert again.returncode == 1
    assert "sweep moons: retrying 1 failed run (nice)" in again.stdout
