"""What looks at runs starts at once: it does not import torch, which takes a second or more."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOKING = ["main", "status", "report", "sync", "jobs", "tables"]


@pytest.mark.parametrize("module", LOOKING)
def test_looking_at_runs_needs_no_torch(module: str) -> None:
    code = f"import sys, fewstep.cli.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_checking_a_network_needs_no_compiler() -> None:
    """Its first import takes longer than all else a command does before it begins."""
    code = (
        "import sys; from fewstep.backbones import BACKBONES;"
        "from fewstep.experiments.network import unfilled\n"
        "with unfilled():\n"
        "    for name in ('dit_digits', 'unet_digits'):\n"
        "        BACKBONES[name].build((1, 8, 8), 10, True)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
