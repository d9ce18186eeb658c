"""One run from its directory: what it leaves, what it refuses, how it fails and recovers."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.tiny import checkpoint_steps, flat, registered, times_changed, tiny, trainer
from safetensors import SafetensorError
from torch import Generator

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import amend
from fewstep.experiments.run import (
    Interrupted,
    RunFailed,
    RunLocked,
    directory_of,
    load_config,
    prepare,
    requested,
    run,
)
from fewstep.experiments.store.classify_error import failure_class
from fewstep.experiments.store.failures import error_record
from fewstep.experiments.store.lease import RunLease, live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.trainer import NotFinite
from fewstep.objectives import Batch, FlowMatching, Loss, Nets, Progress

N = 597  # held-out digits

# ----------------------------------------------------------------------------- a run that is well


def test_the_record_of_a_run(tmp_path: Path) -> None:
    config = tiny(tmp_path, "objective=scm", "evaluation.steps=[1,2]", "seed=3", "sweep=study")
    directory = prepare(config)
    assert directory.path == tmp_path / "study" / config.key
    assert directory.status() == "new"
    phases: list[tuple[str, int, int]] = []
    result = run(
        directory, on_progress=lambda p, done, total, rate: phases.append((p, done, total))
    )

    assert directory.status() == "done"
    assert directory.result() == result
    assert result["key"] == config.key
    assert result["steps"] == 6
    assert result["images_seen"] == 6 * 16
    assert result["train_seconds"] > 0
    assert result["evaluate_seconds"] > 0
    assert result["seconds_total"] > result["train_seconds"]
    assert result["steps_per_second"] == pytest.approx(6 / result["train_seconds"])
    assert result["images_per_second"] == pytest.approx(96 / result["train_seconds"])
    assert result["parameters"] == len(flat(trainer(config).net))
    assert 100e6 < result["peak_memory_bytes"] < 8e9
    last = directory.metrics()[-1]
    assert (result["loss"], result["validation_loss"]) == (last["loss"], last["validation_loss"])
    assert phases[:6] == [("train", i, 6) for i in range(1, 7)]
    images = [done for phase, done, total in phases[6:] if (phase, total) == ("evaluate", 3 * N)]
    assert images == sorted(images)
    assert {N, 3 * N} <= set(images)
    assert len(images) == len(phases) - 6

    spec = directory.spec()
    assert spec is not None
    assert (spec["version"], spec["key"], spec["title"]) == (1, config.key, "sCM")
    assert spec["config"] == config.values
    assert checkpoint_steps(directory) == [6]
    assert len(directory.cells()) == len(list(directory.samples.glob("*.npz"))) == 2
    assert directory.failure() is None
    assert not list(directory.path.rglob(".*"))  # no temporary file is left


def test_provenance(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "training.steps=1"))
    told = run(directory)["provenance"]
    assert len(told["commit"]) == 40
    assert isinstance(told["dirty"], bool)
    assert told["versions"]["torch"] == torch.__version__
    assert len(told["objective_source"]) == len(told["backbone_source"]) == 12
    assert told["objective_source"] != told["backbone_source"]
    assert told["optimiser_source"] is None  # torch's, to the last bit
    assert told["device"] == "cpu" or torch.cuda.is_available()
    assert told["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(told["started"]) <= datetime.fromisoformat(told["finished"])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = tiny(tmp_path, "evaluation.steps=[1]")
    directory = prepare(config)
    result = run(directory)
    before = times_changed(directory.path)
    assert prepare(config) == directory
    assert run(directory) == result
    assert times_changed(directory.path) == before


def test_other_cells_are_added_to_a_finished_run_without_training(tmp_path: Path) -> None:
    config = tiny(tmp_path, "evaluation.steps=[1]")
    directory = prepare(config)
    result = run(directory)
    before = times_changed(directory.path)
    prepare(amend(config, ["evaluation.steps=[1,2]", "objective.solver=heun"]))
    assert requested(directory).objective == FlowMatching(solver="heun")
    assert run(directory) == result
    after = times_changed(directory.path)
    changed = {name for name in after if after[name] != before.get(name)}
    changed -= {"run.lock", "attempts.jsonl"}
    assert {Path(name).parts[0] for name in changed} == {"request.json", "evaluations", "samples"}
    assert before.keys() <= after.keys()
    told = [
        (c["cell"]["steps"], c["cell"]["sampler"]["solver"], c["nfe"])
        for c in directory.cells().values()
    ]
    assert sorted(told) == [(1, "euler", 1), (1, "heun", 2), (2, "heun", 4)]


def test_stopped_between_cells_a_run_goes_on_with_those_it_lacks(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "evaluation.steps=[1,2,3]"))
    with pytest.raises(Interrupted, match=f"after {N} of {6 * N} network evaluations"):
        run(directory, stop=lambda: bool(directory.cells()))
    assert directory.status() == "running"
    assert directory.failure() is None
    first = times_changed(directory.path / "evaluations")
    checkpoints = times_changed(directory.checkpoints)
    assert run(directory)["steps"] == 6
    assert len(directory.cells()) == 3
    assert first.items() <= times_changed(directory.path / "evaluations").items()
    assert times_changed(directory.checkpoints) == checkpoints


def test_stopped_within_a_cell_a_run_does_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tiny(tmp_path, "evaluation.steps=[9]", "evaluation.batch_size=199"))
    monkeypatch.setattr("fewstep.experiments.run.PATIENCE_SECONDS", 0.0)  # the cell is a short one
    told: list[int] = []

    def on_progress(phase: str, done: int, total: int, rate: float) -> None:
        if phase == "evaluate":
            told.append(done)

    with pytest.raises(Interrupted, match=f"after {4 * 199} of {9 * N} network evaluations"):
        run(directory, stop=lambda: len(told) == 4, on_progress=on_progress)
    assert (directory.status(), directory.failure()) == ("running", None)
    assert run(directory)["steps"] == 6
    assert len(directory.cells()) == 1


# ---------------------------------------------------------------------------------- what it refuses


def test_a_directory_without_a_spec(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*nothing"):
        run(RunDirectory(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_spec_of_another_configuration_is_refused_by_all(tmp_path: Path) -> None:
    mine, other = prepare(tiny(tmp_path)), prepare(tiny(tmp_path, "seed=1"))
    shutil.copy(other.path / "spec.json", mine.path / "spec.json")
    before = times_changed(mine.path)
    for attempt in (lambda: run(mine), lambda: prepare(tiny(tmp_path)), lambda: load_config(mine)):
        with pytest.raises(UserError, match="from another configuration") as caught:
            attempt()
        message = str(caught.value)
        assert other.key in message
        assert f"expected {mine.key}" in message
        assert "\n" not in message
    assert times_changed(mine.path) == before


def test_a_spec_edited_by_hand_is_refused(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path))
    spec = directory.spec()
    assert spec is not None
    spec["config"]["training"]["lr"] = 0.123
    directory.write("spec", spec)
    with pytest.raises(UserError, match="from another configuration"):
        run(directory)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"config": {}}', '{"key": "a", "config": 3}']
)
def test_a_spec_that_is_none_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    directory = prepare(tiny(tmp_path))
    (directory.path / "spec.json").write_text(text)
    with pytest.raises(UserError, match=r"spec\.json") as caught:
        run(directory)
    assert "\n" not in str(caught.value)


def test_a_run_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"cannot write to run root .*; choose another with runs="):
        prepare(tiny(tmp_path / "runs"))


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "training.steps=1"))
    with RunLease(directory):
        before = times_changed(directory.path)
        with pytest.raises(RunLocked, match="another process"):
            run(directory)
        changed = times_changed(directory.path)
        assert {n for n in changed if changed[n] != before[n]} <= {"run.lock"}
    assert run(directory)["steps"] == 1
    assert not directory.lease.exists()  # the run let go of it


# ---------------------------------------------------------------------------------- how it fails


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (NotFinite(3), "nan"),
        (FloatingPointError("NaN"), "nan"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EACCES, "Permission denied"), "io_error"),  # also a ticket that has expired
        (UserError("bad"), "bad_data"),
        (ValueError("what"), "bug"),
        (RuntimeError("shapes"), "bug"),
        (AssertionError(), "bug"),
    ],
)
def test_classes_of_failure(error: Exception, name: str) -> None:
    assert failure_class(error) == name
    record = error_record(RunDirectory(Path("nowhere")), error)
    assert record["class"] == name
    assert record["message"]
    assert record["step"] == getattr(error, "step", None)


def test_more_memory_than_there_is_is_no_bug() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert failure_class(caught.value) == "oom"


def test_a_message_of_many_lines_becomes_one() -> None:
    told = error_record(RunDirectory(Path("nowhere")), RuntimeError("first\nsecond"))
    assert told["message"] == "first"


@dataclass(frozen=True)
class Flaky(FlowMatching):
    """Fails at the fourth update as long as the file ``while_there`` is there."""

    while_there: str = ""

    title: ClassVar[str] = "Flaky"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        if progress.step == 3 and Path(self.while_there).exists():
            raise MemoryError("no room")
        return super().loss(nets, batch, progress, g)


def test_a_failed_run_is_tried_again_from_its_checkpoint(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    with registered("objective", "flaky", Flaky()):
        config = tiny(
            tmp_path,
            "objective=flaky",
            ("objective.while_there", str(flag)),
            "training.checkpoint_every=2",
        )
        directory = prepare(config)
        with pytest.raises(RunFailed, match="oom: no room") as caught:
            run(directory)
        assert directory.status() == "failed"
        assert directory.failure() == caught.value.record
        assert "MemoryError" in caught.value.record["traceback"]
        assert checkpoint_steps(directory) == [2]
        assert live_lease(directory) is None
        flag.unlink()
        steps: list[int] = []
        run(directory, on_progress=lambda phase, done, total, rate: steps.append(done))
        assert steps == [3, 4, 5, 6]
        assert directory.status() == "done"
        assert directory.failure() is None


def test_data_that_do_not_fit_the_backbone_are_bad_data(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "backbone.patch=3"))
    with pytest.raises(RunFailed, match=r"bad_data: backbone\.patch .* got 3"):
        run(directory)
    failure = directory.failure()
    assert failure is not None
    assert failure["class"] == "bad_data"


def test_a_failed_evaluation_of_a_finished_run_leaves_no_trace_once_it_works(
    tmp_path: Path,
) -> None:
    config = tiny(tmp_path, "training.steps=1")
    directory = prepare(config)
    run(directory)
    prepare(amend(config, ["evaluation.times=[[1,2,0]]"]))  # not falling
    with pytest.raises(RunFailed, match="bad_data: times must fall"):
        run(directory)
    assert directory.status() == "done"
    prepare(amend(config, ["evaluation.steps=[1]"]))
    run(directory)
    assert directory.failure() is None
    assert len(directory.cells()) == 1


def test_a_finished_run_without_its_last_checkpoint_is_not_evaluated_at_another(
    tmp_path: Path,
) -> None:
    """The one before is there, but it is not the network that was trained."""
    config = tiny(tmp_path, "training.checkpoint_every=3")
    directory = prepare(config)
    run(directory)
    assert checkpoint_steps(directory) == [3, 6]
    (directory.checkpoints / "step-00000006" / "tensors.safetensors").write_bytes(b"torn")
    prepare(amend(config, ["evaluation.steps=[1]"]))
    with pytest.raises(RunFailed, match="is of step 3, expected 6"):
        run(directory)
    assert not directory.cells()
    (directory.path / "result.json").unlink()  # as the message says
    run(directory)
    assert len(directory.cells()) == 1


def test_files_hold_no_surprises_for_other_readers(tmp_path: Path) -> None:
    """JSON that others can parse: no NaN, no Infinity."""
    directory = prepare(tiny(tmp_path, "evaluation.steps=[1]"))
    run(directory)

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    files = [*directory.path.glob("*.json"), *(directory.path / "evaluations").glob("*.json")]
    assert len(files) == 5  # spec, request, data, result, one cell
    for file in files:
        json.loads(file.read_text(), parse_constant=refuse)
    assert all(math.isfinite(c["value"]) for c in directory.cells().values())


def test_the_directory_is_named_by_root_sweep_and_key(tmp_path: Path) -> None:
    config = tiny(tmp_path, "sweep=here")
    assert directory_of(config).path == tmp_path / "here" / config.key
    assert not tmp_path.joinpath("here").exists()  # asking makes nothing


def test_bookkeeping_asked_later_is_heeded_and_leaves_the_key(tmp_path: Path) -> None:
    config = tiny(tmp_path, "training.log_every=0", "training.validate_every=0")
    directory = prepare(config)
    again = tiny(tmp_path, "training.log_every=2", "training.validate_every=0")
    assert prepare(again) == directory
    assert requested(directory).training.log_every == 2
    run(directory)
    assert [row["step"] for row in directory.metrics()] == [2, 4, 6]


def test_source_hash_sees_what_the_class_is_made_of() -> None:
    from fewstep.backbones import BACKBONES
    from fewstep.experiments.store import source_hash as source
    from fewstep.objectives import OBJECTIVES

    made_of = source._sources(type(OBJECTIVES["flow_matching"]).__module__, set())
    expected = ("flow_matching", "core.base", "core.paths", "core.samplers")
    assert {f"fewstep.objectives.{m}" for m in expected} <= made_of
    assert "fewstep.objectives.scm" not in made_of
    assert "fewstep.backbones.embeddings" in source._sources(
        type(BACKBONES["dit_digits"]).__module__, set()
    )
    assert source.source_hash(OBJECTIVES["scm"]) != source.source_hash(OBJECTIVES["flow_matching"])


def test_convolutions_are_in_float32_and_the_host_keeps_its_setting(tmp_path: Path) -> None:
    seen = []
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        run(
            prepare(tiny(tmp_path, "training.steps=1")),
            stop=lambda: bool(seen.append(torch.backends.cudnn.allow_tf32)),
        )
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert set(seen) == {False}
