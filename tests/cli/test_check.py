"""``fewstep check``: one objective in a table, all of them in lines, its exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.commands import fewstep
from helpers.tiny import registered
from torch import Generator

from fewstep.cli.commands import check
from fewstep.errors import UserError
from fewstep.objectives import OBJECTIVES, Batch, FlowMatching, Loss, Nets, Progress
from fewstep.objectives.conformance import CHECKS


class Twice(FlowMatching):
    """A loss that is two."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().loss(nets, batch, progress, g)
        return Loss(loss.per_sample.repeat(2), loss.t)


def test_one_objective_in_a_table(tmp_path: Path) -> None:
    done = fewstep("check", "objective=scm", "objective.sigma_d=0.4", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in CHECKS:
        assert re.search(rf"^{name} +(holds|not taken) +\S", done.stdout, re.M), done.stdout
    assert "fails" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_failing_objective_is_told_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with registered("objective", "twice", Twice()):
        assert check.check(["objective=twice"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^per-sample loss +fails +per_sample has shape \(128,\)", told, re.M), told
    assert re.search(r"^path +holds", told, re.M)


def test_all_objectives_in_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"flow_matching": FlowMatching(), "twice": Twice()}
    monkeypatch.setattr(OBJECTIVES, "_entries", shown)
    assert check.check([]) == 1
    sound, faulty = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"flow_matching +\d+ hold, \d+ not taken", sound)
    assert re.match(r"twice +\d+ hold, \d+ fail, .*per-sample loss \(per_sample has shape", faulty)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective=scmm"], "did you mean 'scm'"),
        (["objective=scm", "objective.sigma=1"], "did you mean 'objective.sigma_d'"),
        (["objective=scm", "objective.sigma_d=-1"], "objective.sigma_d must be"),
        (["objective=scm", "data=digits"], "unknown setting 'data' of check (choices: objective)"),
        (["objective.sigma_d=1"], "check needs objective=NAME"),
        (["objective"], "not of the form key=value"),
    ],
)
def test_bad_input(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        check.check(overrides)


def test_bad_input_on_the_command_line(tmp_path: Path) -> None:
    done = fewstep("check", "objective=scmm", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown objective 'scmm'")
