"""The sweep files in docs/sweeps.md are sweeps, and make what they say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fewstep.sweeps.plan import plan

DOCS = Path(__file__).parents[3] / "docs/sweeps.md"
FILES = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
COMMANDS = re.findall(r"^fewstep sweep (\w+)\.yaml (.*?)(?: +#.*)?$", DOCS.read_text(), re.M)


@pytest.fixture
def sweeps(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [write(text) for text in FILES]
    return {sweep.name: sweep for sweep in made}


def test_every_feature_once(sweeps):
    members = sweeps["scaling"].members()
    by_method = Counter(m.choices["objective"] for m in members)
    rates, warmups, shares, seeds = 3, 2, 2, 3
    sizes = 3  # of backbone and batch: dit_s_2 has no large one
    each = sizes * warmups * seeds
    assert by_method == {
        "flow_matching": rates * each,
        "shortcut": rates * shares * each,
        "shortcut (EMA)": shares * each,
        "scd": each,
    }
    assert {str(m.resources) for m in members} == {
        "4 CPUs, 16 GB, 2 h",
        "1 GPU, 4 CPUs, 16 GB, 24 h",
    }
    assert sweeps["scaling"].launchers["slurm"]["account"] == "abc"
    assert len(sweeps["random"].members()) == 40
    steps = {m.choices["objective"]: m.config.training.steps for m in sweeps["equal"].members()}
    assert steps["flow_matching"] == 2 * steps["teacher"] == 20_000
    assert steps["scd"] == int(10_000 / (5 / 3))
    for sweep in sweeps.values():
        assert plan(sweep, view=True).counts()["new"] == len(sweep.members())


def test_the_command_lines_beside_them(sweeps):
    assert len(COMMANDS) == 4
    for name, overrides in COMMANDS:
        made = plan(sweeps[name].with_overrides(overrides.split()))
        assert made.counts()["new"] == len(made.runs)
