"""Runs that learn from another: naming it, refusing what cannot teach, what comes over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny import flat, taught, tiny, train, trainer

from fewstep.analysis.columns import add_teachers, protocol
from fewstep.errors import UserError
from fewstep.experiments.config import reproduce
from fewstep.experiments.config.run_config import Override, amend, compose
from fewstep.experiments.evaluation.diagnostics import diagnose_run
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import load_network
from fewstep.experiments.training.reflow_pairs import BLOCK
from fewstep.experiments.training.teacher import check_teacher, teacher_directory
from fewstep.experiments.training.trainer import Interrupted
from fewstep.experiments.validation import check
from fewstep.objectives import OBJECTIVES, Progress, Teacher, TrigPath


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def teacher(root: Path) -> RunDirectory:
    """A finished tiny flow matching run."""
    directory = prepare(tiny(root, "training.steps=2"))
    run(directory)
    return directory


def test_a_teacher_is_named_by_directory_or_by_key(root: Path, teacher: RunDirectory) -> None:
    named = [teacher.key, teacher.key[:6], str(teacher.path), f"{teacher.path}/"]
    configs = [tiny(root, "objective=scd", ("teacher", name)) for name in named]
    assert {config.values["teacher"] for config in configs} == {str(teacher.path)}
    check(configs)


def test_its_key_is_part_of_the_students_key_and_its_place_is_not(
    root: Path, teacher: RunDirectory, tmp_path: Path
) -> None:
    config = tiny(root, "objective=scd", ("teacher", str(teacher.path)))
    moved = shutil.copytree(teacher.path, tmp_path / "elsewhere" / teacher.key)
    assert tiny(root, "objective=scd", ("teacher", str(moved))).key == config.key
    another = prepare(tiny(root, "training.steps=3"))
    assert tiny(root, "objective=scd", ("teacher", str(another.path))).key != config.key
    assert tiny(root).key == tiny(root, "teacher=null").key


def test_a_second_teacher(root: Path, teacher: RunDirectory) -> None:
    """Autoguidance: trained with, part of the key, counted, and refused where nobody asks it."""
    worse = prepare(tiny(root, "training.steps=1"))
    run(worse)
    flow: Override = ("teacher", str(teacher.path))
    asked: list[Override] = ["objective=scd", flow, "objective.autoguidance=2", "training.steps=2"]
    given: Override = ("weak_teacher", worse.key[:8])
    config = tiny(root, *asked, given)
    alone = tiny(root, "objective=scd", flow, "training.steps=2")
    assert config.values["weak_teacher"] == str(worse.path)
    assert "weak_teacher" not in dict(reproduce.overrides(alone))
    assert dict(reproduce.overrides(config))["weak_teacher"] == worse.key
    check([config])
    directory = prepare(config)
    run(directory)
    trained, plain = train(config), train(alone)
    assert trained.weak_teacher is not None
    assert plain.weak_teacher is None
    assert trained.last["loss"] != plain.last["loss"]
    known = [protocol(r.spec()["config"]) | r.result() for r in (teacher, worse, directory)]
    rows = [
        {"key": r.key, **row} for r, row in zip((teacher, worse, directory), known, strict=True)
    ]
    add_teachers(rows, root)
    assert rows[2]["weak_teacher"] == worse.key
    assert rows[2]["teacher_images_seen"] == (2 + 1) * config.training.batch_size
    facts = diagnose_run(directory, config, rows=64)
    assert facts["key"] == config.key
    for settings, message in (
        (asked, "autoguidance=2.0 needs a second, worse teacher: name a finished run with weak_"),
        (["objective=scd", flow, given], "'scd' asks no weak teacher, got weak_teacher="),
        ([*asked, given, "data.test_images=100"], "learns from other data: digits"),
        ([*asked, ("weak_teacher", "nobody")], "weak_teacher: no run"),
        ([*asked, ("weak_teacher", teacher.key)], "is the teacher: name a worse one"),
    ):
        with pytest.raises(UserError) as told:
            check([tiny(root, *settings)])
        assert message in str(told.value)


def test_a_flow_map_can_teach(root: Path) -> None:
    """By its velocity, the jump of length 0; and its weights can be the first ones."""
    flow_map = prepare(tiny(root, "objective=mean_flow", "training.steps=2"))
    run(flow_map)
    given: list[Override] = [("teacher", str(flow_map.path)), "training.init=teacher"]
    student = train(tiny(root, "objective=ayf_lmd", *given, "training.steps=2"))
    assert isinstance(student.teacher, Teacher)
    x, t = torch.randn(3, 1, 8, 8), torch.full((3,), 0.6)
    own = student.teacher.net(x, t, torch.zeros(3), None)
    torch.testing.assert_close(student.teacher(x, t), own)


def test_bad_teachers_are_told_in_one_line(root: Path, teacher: RunDirectory) -> None:
    unfinished = prepare(tiny(root, "training.steps=9"))
    blind = prepare(tiny(root, "objective=consistency", "training.steps=2"))
    run(blind)
    flow: Override = ("teacher", str(teacher.path))
    cases: list[tuple[list[Override], str]] = [
        (["objective=scd"], "'scd' needs a teacher: name a finished run with teacher=RUN"),
        (["objective=scd", ("teacher", str(unfinished.path))], "is not finished (new)"),
        (["objective=scd", ("teacher", str(root / "train" / "0123456789ab"))], "no run in"),
        (
            ["objective=scd", ("teacher", str(blind.path))],
            "'consistency', which learns no velocity",
        ),
        (["objective=scd", flow, "data.test_images=100"], "learns from other data: digits"),
        (["objective=shortcut", flow], "'shortcut' learns from no teacher"),
        (
            ["objective=reflow", flow, "backbone.width=32", "training.init=teacher"],
            f"the backbone of {teacher.key} has width=16, this run's has width=32",
        ),
        (["training.init=teacher"], "needs a run to start from"),
        (["objective=scd", flow, "objective.teacher_guidance=2"], "trained without labels"),
        (
            ["objective=scd", flow, "training.label_dropout=0.1"],
            f'label_dropout 0.1 asks teacher {teacher.key} for "no label", which needs a network',
        ),
        (["evaluation.steps=[1]", "evaluation.guidance=[1,3]"], "evaluation.guidance 3 needs"),
        (["objective=shortcut_kvfrans"], "the guidance in objective 'shortcut_kvfrans' needs"),
        (["objective=mean_flow", "objective.mixing=0.5"], "training.label_dropout is 0"),
    ]
    for overrides, told in cases:
        with pytest.raises(UserError) as caught:
            check([tiny(root, *overrides)])
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    check([tiny(root, "objective=shortcut_kvfrans", "training.label_dropout=0.1")])
    check([tiny(root, "objective=reflow", flow, "training.label_dropout=0.1")])  # not in its loss
    none = ["objective=shortcut_kvfrans", "data=gaussian", "training.label_dropout=0.1"]
    with pytest.raises(UserError, match="'shortcut_kvfrans' needs labels, and gaussian has none"):
        check([compose([*none, ("runs", str(root))])])
    with pytest.raises(UserError, match="no run 'nobody'"):
        tiny(root, "objective=scd", "teacher=nobody")
    with pytest.raises(UserError, match="'teach'; did you mean 'teacher'"):
        tiny(root, "training.init=teach")


def test_a_folder_that_is_not_called_by_its_key_is_no_teacher(
    root: Path, teacher: RunDirectory, tmp_path: Path
) -> None:
    """The student's key has the folder's name in it: two teachers under one name would be one."""
    copied = shutil.copytree(teacher.path, tmp_path / "best")
    with pytest.raises(UserError, match=f"holds run {teacher.key}"):
        tiny(root, "objective=scd", ("teacher", str(copied)))
    for name in ("", "*", "["):
        with pytest.raises(UserError, match="no run"):
            tiny(root, "objective=scd", ("teacher", name))


def test_what_was_learned_needs_the_teacher_no_more(tmp_path: Path) -> None:
    config = tiny(tmp_path, *taught(tmp_path, "scd"), "training.steps=2")
    with pytest.raises(UserError, match="teacher"):
        check([tiny(tmp_path, "objective=scd", ("teacher", "0" * 12))])
    directory = prepare(config)
    run(directory)
    shutil.rmtree(Path(config.values["teacher"]))
    check([config])
    prepare(amend(config, ["evaluation.steps=[1]"]))
    run(directory)
    assert len(directory.cells()) == 1


def test_a_moved_teacher_is_found_by_its_key_the_finished_one_first(
    tmp_path: Path, teacher: RunDirectory, root: Path
) -> None:
    config = tiny(tmp_path, "objective=scd", ("teacher", str(tmp_path / "gone" / teacher.key)))
    with pytest.raises(UserError, match="no run in"):
        check_teacher(config)
    for sweep in ("a", "b"):
        shutil.copytree(teacher.path, tmp_path / sweep / teacher.key)
    (tmp_path / "a" / teacher.key / "result.json").unlink()
    check_teacher(config)
    found = teacher_directory(config)
    assert found is not None
    assert found.sweep == "b"


def test_what_can_teach_is_what_the_error_says() -> None:
    can = {name for name in OBJECTIVES.names() if OBJECTIVES[name].can_teach}
    assert {"flow_matching", "shortcut", "mean_flow"} < can
    assert not can & {"consistency", "scm", "ict", "ect", "progressive_distillation"}


def test_the_students_first_weights(root: Path, teacher: RunDirectory) -> None:
    flow: Override = ("teacher", str(teacher.path))
    network = load_network(tiny(root, "training.steps=2"), tiny(root).data.load(), teacher, "ema")
    alike = trainer(tiny(root, "objective=consistency_distillation", flow))
    assert torch.equal(flat(alike.net), flat(network))
    anew = trainer(tiny(root, "objective=consistency_distillation", flow, "training.init=random"))
    assert not torch.equal(flat(anew.net), flat(network))
    other_path = trainer(tiny(root, "objective=scd", flow))
    assert torch.equal(flat(other_path.net), flat(anew.net))  # of the run's seed
    assert other_path.teacher is not None
    assert other_path.teacher.path == TrigPath(0.5)
    asked = trainer(tiny(root, "objective=shortcut", flow, "training.init=teacher"))
    kept = dict(asked.net.named_parameters())  # with the jump embedding of its own
    assert all(torch.equal(kept[name], p) for name, p in network.named_parameters())


def test_the_teacher_learns_nothing(root: Path, teacher: RunDirectory) -> None:
    before = flat(load_network(tiny(root), tiny(root).data.load(), teacher, "ema"))
    made = train(tiny(root, "objective=scd", ("teacher", str(teacher.path))))
    assert made.teacher is not None
    assert torch.equal(flat(made.teacher.net), before)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in made.teacher.net.parameters())  # type: ignore[attr-defined]


def test_pairs_are_drawn_once_and_belong_together(tmp_path: Path) -> None:
    config = tiny(tmp_path, *taught(tmp_path, "reflow"), "objective.pairs=40")
    made = train(config)
    assert made.pairs is not None
    assert made.teacher is not None
    assert len(made.pairs.x) == 40
    y = made.pairs.y
    again = made.objective.make_pairs(made.teacher, made.pairs.eps, y)
    torch.testing.assert_close(again, made.pairs.x)
    files = sorted((made.directory.path / "pairs").iterdir())
    written = [f.stat().st_mtime_ns for f in files]
    second = trainer(config)
    second.prepare(lambda: False, lambda done, total, rate: None)
    assert second.pairs is not None
    assert torch.equal(second.pairs.x, made.pairs.x)
    assert [f.stat().st_mtime_ns for f in files] == written


def test_stopped_while_drawing_pairs_the_rest_is_drawn_later(tmp_path: Path) -> None:
    count = ("objective.pairs", 2 * BLOCK + 5)
    config = tiny(tmp_path, *taught(tmp_path, "reflow"), count)
    made = trainer(config)
    seen: list[int] = []
    with pytest.raises(Interrupted, match="while pairs were drawn"):  # at the second block's start
        made.prepare(lambda: seen == [1], lambda done, total, rate: seen.append(done))
    assert len(list(made.directory.pairs.iterdir())) == 1
    assert made.directory.saved_work()["pairs"] == 1
    made.directory.write("spec", {})
    assert made.directory.status() == "running"
    seen.clear()
    made.prepare(lambda: False, lambda done, total, rate: seen.append(done))
    assert seen == [1, 2, 3]
    assert made.pairs is not None
    assert len(made.pairs.x) == 2 * BLOCK + 5


def test_the_former_network_is_the_student_of_the_stage_before(tmp_path: Path) -> None:
    settings = [*taught(tmp_path, "progressive_distillation"), "objective.finest=4"]
    made = trainer(tiny(tmp_path, *settings, "training.steps=6"))  # two stages of three steps
    assert [s for s in range(6) if made.objective.takes_snapshot(Progress(s, 6))] == [3]
    for _ in range(3):
        made._update()
    assert made.snapshot is None
    student = flat(made.net)
    made._update()
    assert made.snapshot is not None
    assert torch.equal(flat(made.snapshot), student)
    made._update()
    assert torch.equal(flat(made.snapshot), student)
    assert not torch.equal(flat(made.net), student)
