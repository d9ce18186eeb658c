"""What the command line chooses, and what it leaves out but a sweep keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import TINY

from fewstep.experiments.run import run
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.plan import Plan, plan

SWEEP = """
axes:
  objective: [flow_matching, scm, consistency]
  training.lr: [1.0e-3, 2.0e-3]
seeds: 2
"""


@pytest.fixture
def planned(tmp_path: Path):
    """Plans of ``s.yaml``, written; the file may be another each time."""

    def make(*overrides: object, text: str = SWEEP) -> Plan:
        (tmp_path / "s.yaml").write_text(text)
        base = [*TINY, "training.steps=2", "evaluation.steps=[]", ("runs", str(tmp_path / "runs"))]
        made = plan(definition.load(str(tmp_path / "s.yaml")).with_overrides([*base, *overrides]))
        made.write()
        return made

    return make


def listed(tmp_path: Path) -> list[tuple[str, ...]]:
    """The members in sweep.json, by their choices and seed."""
    sweep = SweepDirectory(tmp_path / "runs/s").plan()
    assert sweep is not None
    for member in sweep["runs"]:
        spec = RunDirectory(tmp_path / "runs/s" / member["key"]).spec()
        assert spec is not None
        assert spec["config"]["objective"]["name"] == member["choices"]["objective"]
    return [(*m["choices"].values(), str(m["seed"])) for m in sweep["runs"]]


ALL = [(o, lr, s) for o in ("flow_matching", "scm", "consistency") for lr in ("0.001", "0.002")
       for s in ("0", "1")]  # fmt: skip


def test_what_is_not_chosen_stays_in_the_sweep_in_its_order(planned, tmp_path):
    planned()
    assert listed(tmp_path) == ALL
    chosen = planned("objective=scm", "seeds=1")
    assert len(chosen.runs) == 2  # and only these are launched
    assert listed(tmp_path) == ALL


def test_a_sweep_may_be_done_piece_by_piece(planned, tmp_path):
    planned("objective=consistency", "training.lr=2e-3")
    last = [m for m in ALL if m[:2] == ("consistency", "0.002")]
    assert listed(tmp_path) == last  # nothing that was never planned
    planned("objective=flow_matching", "seeds=[1]")
    assert listed(tmp_path) == [m for m in ALL if (m[0], m[2]) == ("flow_matching", "1")] + last
    planned()
    assert listed(tmp_path) == ALL


def test_what_the_file_has_no_more_is_no_member_any_more(planned, tmp_path):
    planned()
    without = SWEEP.replace(", consistency", "").replace("1.0e-3, ", "")
    planned("objective=flow_matching", text=without)
    assert listed(tmp_path) == [m for m in ALL if m[0] != "consistency" and m[1] == "0.002"]
    excluded = SWEEP + "exclude: [{objective: scm, training.lr: 0.001}]\n"
    planned("seeds=[1]", text=excluded)
    assert listed(tmp_path) == [m for m in ALL if m[:2] != ("scm", "0.001")]


def test_seeds_beyond_the_files_are_members_while_they_are_asked_for(planned, tmp_path):
    planned("seeds=3", "objective=scm", "training.lr=1e-3")
    planned("seeds=[7]", "objective=scm", "training.lr=1e-3")
    assert listed(tmp_path) == [("scm", "0.001", s) for s in ("0", "1", "7")]


def test_another_setting_for_all_leaves_the_others_out(planned, tmp_path):
    """They were trained otherwise, so they are not what the file and this line define."""
    planned()
    planned("training.batch_size=8", "objective=scm", "seeds=1")
    assert listed(tmp_path) == [("scm", "0.001", "0"), ("scm", "0.002", "0")]
    planned("objective=scm", "seeds=1")
    assert listed(tmp_path) == ALL  # nothing was lost


def test_a_setting_that_the_others_do_not_have_leaves_them_as_they_are(planned, tmp_path):
    planned()
    before = SweepDirectory(tmp_path / "runs/s").runs()
    planned("objective=scm", "objective.tangent_norm=0.2")
    assert listed(tmp_path) == ALL
    kept = {r.key for r in before} & {r.key for r in SweepDirectory(tmp_path / "runs/s").runs()}
    assert len(kept) == 8  # and four of scm, which are others now


def test_a_student_chosen_alone_learns_from_the_teacher_that_is_done(planned, tmp_path):
    text = "axes: {objective: [flow_matching, {objective: scd, teacher: flow_matching}]}"
    first = planned(text=text)
    run(first.runs[0].directory)
    # a setting that only the student has makes no other teacher of it
    again = planned("objective=scd", "objective.tangent_norm=0.2", text=text)
    assert Path(again.runs[0].member.config.values["teacher"]).name == first.runs[0].directory.key
    assert listed(tmp_path) == [("flow_matching", "0"), ("scd", "0")]
