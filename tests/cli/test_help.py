"""--help, --version and list."""

from __future__ import annotations

import pytest
from helpers.commands import succeed

from fewstep import __version__
from fewstep.backbones import BACKBONES
from fewstep.cli.app import COMMANDS, main
from fewstep.experiments.autoencoders import AUTOENCODERS
from fewstep.experiments.data import DATA
from fewstep.experiments.extractors import EXTRACTORS
from fewstep.experiments.metrics import METRICS
from fewstep.experiments.optimisers import OPTIMISERS
from fewstep.objectives import OBJECTIVES
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.launcher import LAUNCHERS

GROUPS = ("bench", "extractor", "recipe")
BENCH = ("step", "data", "metrics", "sweep", "analysis")
SHOWN = [*COMMANDS, *GROUPS, *(f"bench {name}" for name in BENCH), "extractor train", "recipe diff"]
NAMES = {
    "objectives": OBJECTIVES.names(),
    "backbones": BACKBONES.names(),
    "data": DATA.names(),
    "extractors": EXTRACTORS.names(),
    "autoencoders": AUTOENCODERS.names(),
    "metrics": METRICS.names(),
    "launchers": LAUNCHERS.names(),
    "optimisers": OPTIMISERS.names(),
    "sweeps": definition.own(),
    "recipes": definition.recipes(),
}


def told(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["fewstep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in SHOWN if name not in ("extractor", "recipe")])
def test_every_command_shows_an_example(monkeypatch, capsys, command):
    text = told(monkeypatch, capsys, *command.split(), "--help")
    assert f"Example: fewstep {command.removesuffix(' step')}" in " ".join(text.split())


def test_all_commands_are_told(tmp_path):
    text = succeed("--help", cwd=tmp_path)
    assert all(f" {command} " in text for command in (*COMMANDS, *GROUPS))
    assert "\x1b" not in text
    assert succeed("--version", cwd=tmp_path) == f"fewstep {__version__}\n"


@pytest.mark.parametrize("kind", NAMES)
def test_list_names_everything(monkeypatch, capsys, kind):
    lines = told(monkeypatch, capsys, "list", kind).splitlines()
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == NAMES[kind]


def test_list_shows_one(monkeypatch, capsys):
    assert told(monkeypatch, capsys, "list", "data", "mnist").split()[3] == "mnist"
    recipe = told(monkeypatch, capsys, "list", "recipes", "papers/scm_cifar10")
    assert "sCT: FID-50k 2.85 (1), 2.06 (2)" in " ".join(recipe.split())
    assert "\nunknown:\n  sCT/training.steps: " in recipe
    for kind, name, near in (("data", "mnits", "mnist"), ("recipes", "papers/scm", "papers/")):
        monkeypatch.setattr("sys.argv", ["fewstep", "list", kind, name])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert near in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "example"), [("bench", "objective=[scm,shortcut]"), ("evaluate", "weights=[raw]")]
)
def test_examples_keep_their_brackets(monkeypatch, capsys, command, example):
    assert example in told(monkeypatch, capsys, command, "--help")
