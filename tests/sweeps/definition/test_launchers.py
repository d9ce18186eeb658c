"""Launchers of other packages, and settings that have a new name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep import registry
from fewstep.cli.app import main
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.sweeps.definition.launchers import LAUNCHERS, SETTINGS
from fewstep.sweeps.launch_record import load_launch_record
from fewstep.sweeps.launcher import launcher
from fewstep.sweeps.local.launcher import LocalLauncher

SMALL = "base: {data: gaussians, tracking.enabled: false}\n"


class Plain(LocalLauncher):
    """Has all it needs."""


class NoDataclass:
    check = preview = launch = print


@dataclass(frozen=True)
class Half:
    def launch(self) -> None: ...


def broken() -> Any:
    raise ImportError("no module\nnamed torque")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"plain": lambda: Plain, "base": lambda: Plain, "training": lambda: Plain,
              "loose": lambda: NoDataclass, "half": lambda: Half, "broken": broken}  # fmt: skip
    found = [SimpleNamespace(name=name, load=load) for name, load in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    monkeypatch.setattr(LAUNCHERS, "_entries", dict(LAUNCHERS._entries))
    monkeypatch.setattr(LAUNCHERS, "not_loaded", {})
    monkeypatch.setattr(LAUNCHERS, "_loaded", False)


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any
) -> str:
    monkeypatch.setattr("sys.argv", ["fewstep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_entry_points_that_are_no_launchers_are_not_loaded(plugins, caplog):
    assert LAUNCHERS.names() == ["local", "plain", "ray", "slurm"]
    told = {
        "base": "ValueError: the name 'base' is reserved",
        "training": "ValueError: the name 'training' is reserved",
        "loose": "TypeError: NoDataclass is not a dataclass",
        "half": "TypeError: Half has no method check, preview",
        "broken": "ImportError: no module named torque",
    }
    assert LAUNCHERS.not_loaded == told
    assert [record.getMessage() for record in caplog.records] == [
        f"entry point {name} of fewstep.launchers was not loaded: {why}"
        for name, why in told.items()
    ]


def test_settings_of_runs_are_reserved():
    assert set(SETTINGS) == set(compose([]).values)


def test_a_launcher_that_was_not_loaded_says_why(plugins, monkeypatch, capsys, tmp_path):
    why = "launcher 'broken' cannot be loaded: ImportError: no module named torque"
    refused = refusal(monkeypatch, capsys, "sweep", "digits", "--launcher", "broken")
    assert refused == f"error: {why}"
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL + "broken: {queue: low}\n")
    assert refusal(monkeypatch, capsys, "sweep", file) == f"error: sweep {file}: {why}"


def test_an_unknown_section_may_be_of_a_launcher(write):
    with pytest.raises(UserError, match="of a launcher that is not installed"):
        write(SMALL + "torque: {queue: low}")
    with pytest.raises(UserError, match="'torque'") as caught:
        write(SMALL + "torque: 3")
    assert "launcher" not in str(caught.value)


def test_an_old_name_in_the_file_does_not_hide_the_new_one_of_the_command_line(write):
    with pytest.warns(DeprecationWarning, match=r"slurm.collect is called slurm.finalize"):
        sweep = write(SMALL + "slurm: {collect: true}")
    assert sweep.launchers == {"slurm": {"finalize": True}}
    assert sweep.with_overrides(["slurm.finalize=false"]).launchers == {
        "slurm": {"finalize": False}
    }
    with pytest.warns(DeprecationWarning, match=r"slurm.collect is called slurm.finalize"):
        again = sweep.with_overrides(["slurm.collect=false"])
    assert again.launchers == {"slurm": {"finalize": False}}


def test_a_setting_under_both_names_is_refused(write):
    told = r"slurm.collect is the old name of slurm.finalize: remove slurm.collect"
    with pytest.raises(UserError, match=told):
        write(SMALL + "slurm: {collect: true, finalize: false}")
    with pytest.raises(UserError, match=told):
        launcher("slurm", {"finalize": False, "collect": True})


def test_a_launch_that_version_0_1_recorded_is_read_without_a_warning(tmp_path):
    write_json(tmp_path / "launch.json", {"launcher": "slurm", "settings": {"collect": False}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_launch_record(SweepDirectory(tmp_path)) == ("slurm", {"finalize": False}, {})


def test_a_plan_says_what_a_launch_would_be_refused_for(write, monkeypatch, capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL)
    words = ["fewstep", "sweep", str(file), "--plan", "--runs", str(tmp_path / "runs")]
    for settings, told in (["training.device=cuda:99"], 1), ([], 0):
        monkeypatch.setattr("sys.argv", [*words, *settings])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert capsys.readouterr().out.count("a launch here would be refused: training") == told
