"""What looks at runs starts at once: it does not import torch, which takes a second or more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.commands import TINY_DIT

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
