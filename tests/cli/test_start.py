"""What looks at runs starts at once: it does not import torch, which takes a second or more."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from helpers.commands import TINY_DIT

from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import SweepDirectory

HEAVY = {"torch", "ray", "submitit", "scipy"}
NOT_FOR_HELP = HEAVY | {"numpy", "pandas", "hydra", "pydantic", "mlflow", "fewstep.sweeps"}


COMMANDS = ["--help", "status", "sync", "report none", "cancel none", "logs none"]


def test_looking_at_runs_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from fewstep.cli.app import main\n"
        f"for words in {COMMANDS}:\n"
        "    sys.argv = ['fewstep', *words.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        f"    heavy = {NOT_FOR_HELP} if words == '--help' else {HEAVY}\n"
        "    print(words, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.endswith("]")]
    assert len(told) == len(COMMANDS), done.stdout + done.stderr
    assert [line for line in told if not line.endswith(" []")] == []


def test_ctrl_c_while_modules_are_imported_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Imports take seconds on a network file system."""

    class CtrlC:
        def find_spec(self, name: str, *where: object) -> None:
            if name == "fewstep.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "fewstep.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [CtrlC(), *sys.meta_path])
    (command,) = entry_points(group="console_scripts", name="fewstep")
    with pytest.raises(SystemExit) as ended:
        command.load()()
    assert ended.value.code == 130


def test_a_terminal_may_lack_the_letters_of_a_label(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path / "runs/mine")
    write_json(sweep.path / "key/spec.json", {"key": "key", "title": "\u732b", "config": {}})
    plan = {"key": "key", "seed": 0, "title": "\u732b", "choices": {"objective": "\u732b \u2192"}}
    write_json(sweep.path / "sweep.json", {"name": "mine", "runs": [plan]})
    for encoding in ("latin-1", "ascii"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fewstep", "status", "mine"],
            env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "120"},
            cwd=tmp_path,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"? ?" in done.stdout


def test_checking_a_network_and_a_run_need_no_compiler(tmp_path: Path) -> None:
    """Its first import takes as long as torch's own."""
    code = (
        "import sys; from fewstep.backbones import BACKBONES;"
        "from fewstep.experiments.training.network import uninitialised_weights\n"
        "with uninitialised_weights():\n"
        "    for name in ('dit_digits', 'unet_digits'):\n"
        "        BACKBONES[name].build((1, 8, 8), 10, True)\n"
        "from fewstep.experiments.config.run_config import compose\n"
        "from fewstep.experiments.run import prepare, run\n"
        f"sizes = {[word for word in TINY_DIT if word != 'data=digits']}\n"
        "sizes += ['training.steps=3', 'evaluation.extractor=raw', 'evaluation.steps=[1]']\n"
        f"done = run(prepare(compose(['data=digits', *sizes, 'runs={tmp_path}'])))\n"
        "assert done['train_flops'] > 0\n"
        "sys.exit(', '.join({'torch._dynamo', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
