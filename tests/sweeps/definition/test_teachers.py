"""Sweeps whose runs learn from one another: keys, order of launch, what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import TINY, fewstep, succeed

from fewstep.cli.commands.sweep import retry
from fewstep.errors import UserError
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.lease import LeaseLost
from fewstep.experiments.worker import ProgressFile
from fewstep.sweeps.definition.parse import load
from fewstep.sweeps.local.worker_pool import WorkerPool
from fewstep.sweeps.plan import plan
from fewstep.sweeps.run_queue import died

STUDENTS_FIRST = """
base: {evaluation.steps: [1], evaluation.extractor: raw, tracking.enabled: false}
axes:
  objective:
    - {objective: reflow, teacher: flow_matching, objective.pairs: 60, objective.pair_steps: 2}
    - {objective: consistency_distillation, teacher: reflow, label: twice removed}
    - flow_matching
seeds: 2
"""


def write(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def test_a_teacher_is_the_run_of_the_same_seed(tmp_path: Path) -> None:
    sweep = load(write(tmp_path, STUDENTS_FIRST)).with_overrides([("runs", str(tmp_path / "r"))])
    members = {(m.choices["objective"], m.seed): m.config for m in sweep.members()}
    for seed in (0, 1):
        flow = members["flow_matching", seed]
        reflow = members["reflow", seed]
        twice = members["twice removed", seed]
        assert reflow.values["teacher"] == str(tmp_path / "r" / "mine" / flow.key)
        assert twice.values["teacher"] == str(tmp_path / "r" / "mine" / reflow.key)
    chosen = sweep.with_overrides(["objective=reflow"])
    assert [m.config.key for m in chosen.members()] == [members["reflow", s].key for s in (0, 1)]


def test_teachers_may_be_to_come_but_not_missing(tmp_path: Path) -> None:
    sweep = load(write(tmp_path, STUDENTS_FIRST)).with_overrides([("runs", str(tmp_path / "r"))])
    assert plan(sweep).counts()["new"] == 6
    with pytest.raises(UserError, match="teacher: no run in"):
        plan(sweep.with_overrides(["objective=reflow"]))


IMPOSSIBLE = """
base: {evaluation.steps: [], tracking.enabled: false, training.steps: 1}
axes:
  objective: [consistency, flow_matching, {objective: scd, teacher: TEACHER, label: student}]
"""


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("teacher", "setting", "says"),
    [
        ("consistency", "objective.tangent_warmup: 5", "'consistency', which learns no velocity"),
        ("flow_matching", "data.test_samples: 100", "learns from other data: gaussians"),
        ("flow_matching", "objective.teacher_guidance: 2", "training.label_dropout is 0"),
        (
            "flow_matching",
            "training.init: teacher, backbone.time_features: 64",
            "the backbone of .* has time_features=128, this run.s has time_features=64",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_runs(
    tmp_path: Path, finished: bool, teacher: str, setting: str, says: str
) -> None:
    """By the plan, whether it is to come or done: with the one line of ``fewstep train``."""
    text = IMPOSSIBLE.replace("TEACHER", f"{teacher}, {setting}")
    here = [*TINY, ("runs", str(tmp_path / "r"))]
    sweep = load(write(tmp_path, text)).with_overrides(here)
    if finished:  # as far as the plan looks: no weights are needed to tell
        for done in plan(sweep.with_overrides([f"objective=[{teacher}]"])).runs:
            prepare(done.member.config)
            done.directory.write("result", {"provenance": {}})
    with pytest.raises(UserError, match=says) as told:
        plan(sweep)
    student = next(m for m in sweep.members() if m.choices["objective"] == "student")
    assert Path(student.config.values["teacher"]).name in str(told.value)
    assert finished or not (tmp_path / "r").exists()


def test_teachers_that_go_round_are_refused(tmp_path: Path) -> None:
    one, two = "{objective: scd, teacher: b, label: a}", "{objective: scd, teacher: a, label: b}"
    text = f"axes: {{objective: [{one}, {two}]}}"
    with pytest.raises(UserError, match="form a cycle"):
        load(write(tmp_path, text)).members()


def test_students_wait_for_their_teachers(tmp_path: Path) -> None:
    """Listed first, run last, with two processes free."""
    write(tmp_path, STUDENTS_FIRST)
    succeed("sweep", "mine.yaml", *TINY, "training.steps=20", "--workers", 2, cwd=tmp_path)
    results = {}
    for file in (tmp_path / "runs/mine").glob("*/result.json"):
        spec = json.loads((file.parent / "spec.json").read_text())["config"]
        results[spec["objective"]["name"], spec["seed"]] = json.loads(file.read_text())
    assert len(results) == 6
    for seed in (0, 1):
        order = [results[name, seed]["provenance"] for name in
                 ("flow_matching", "reflow", "consistency_distillation")]  # fmt: skip
        assert order[0]["finished"] <= order[1]["started"]
        assert order[1]["finished"] <= order[2]["started"]


def test_a_student_of_a_failed_teacher_fails_with_that_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base: {evaluation.steps: [], tracking.enabled: false}\n"
        "axes: {objective: [{objective: flow_matching, training.lr: 1e30},"
        " {objective: scd, teacher: flow_matching}]}\n",
    )
    done = fewstep("sweep", "mine.yaml", *TINY, "training.steps=20", "--workers", 2, cwd=tmp_path)
    assert done.returncode != 0
    failures = [json.loads(f.read_text()) for f in (tmp_path / "runs/mine").glob("*/failure.json")]
    told = {failure["class"]: failure["message"] for failure in failures}
    assert set(told) == {"nan", "bad_data"}
    assert "is not finished (failed)" in told["bad_data"]


def test_a_teacher_that_is_removed_at_work_stays_removed_and_is_new(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        "base: {evaluation.steps: [], tracking.enabled: false, training.steps: 1000000}\n"
        "axes: {objective: [flow_matching, {objective: scd, teacher: flow_matching}]}\n",
    )
    sweep = load("mine.yaml").with_overrides(TINY)
    teacher, _ = [planned.directory for planned in plan(sweep).runs]
    plan(sweep).write()

    def remove(phase: str, done: int, total: int, rate: float) -> None:
        ProgressFile(teacher)(phase, done, total, rate)  # which does not make it again
        shutil.rmtree(teacher.path, ignore_errors=True)

    with pytest.raises(LeaseLost, match="somebody has removed"):
        run(teacher, on_progress=remove)
    assert not teacher.path.exists()
    told = []
    outcome = WorkerPool(1).launch([teacher], lambda event, _: told.append(event.kind))
    assert (outcome.failed, told) == ([teacher.key], ["failed", "tick"])
    teacher.write("failure", died(teacher, -9))
    assert not teacher.path.exists()

    # whatever somebody leaves there, without a spec it is no run
    teacher.path.mkdir()
    teacher.lock.touch()
    teacher.write("failure", {"class": "nan", "message": "of what was removed"})
    again = load("mine.yaml").with_overrides(TINY)  # its students, too, are found anew
    assert [planned.state for planned in plan(again).runs] == ["new", "new"]
    assert retry("mine") == 0
    assert "no failed runs in sweep mine" in capsys.readouterr().out
    plan(again).write()
    assert teacher.spec()
    assert not teacher.failure()
