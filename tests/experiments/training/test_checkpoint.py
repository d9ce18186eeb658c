"""Checkpoints: exact, whole or not there, and the one before when the newest is damaged."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.killed import at_file_operation

from fewstep.experiments.training import checkpoint
from fewstep.experiments.training.checkpoint import LEFT_SECONDS, Checkpoint, load_latest, save


def made(step: int, size: int = 5) -> Checkpoint:
    tensors = {
        "net.weight": torch.full((size, 3), float(step)),
        "net.half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16),
        "optimiser.step": torch.tensor(float(step)),
        "count": torch.tensor([2**60 + step]),
    }
    return Checkpoint(step, tensors, {"key": "abc", "seconds": 0.1 + 0.2, "last": {"loss": 1e-30}})


def folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = made(7)
    save(tmp_path, saved)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 7
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert torch.equal(loaded.tensors[name], tensor)
    assert saved.state.items() <= loaded.state.items()  # floats to the last bit


def test_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    save(tmp_path, Checkpoint(1, {"columns": whole[:, 1:3], "turned": whole.T}, {}))
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.tensors["columns"], whole[:, 1:3])
    assert torch.equal(loaded.tensors["turned"], whole.T)


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "nowhere") is None


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, made(step))
    assert folders(tmp_path) == ["step-00000100", "step-00001000"]


def test_a_checkpoint_that_finds_no_room_leaves_none_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, made(5))

    def full(tensors: dict[str, torch.Tensor], file: Path) -> None:
        file.write_bytes(b"as far as it went")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, made(10))
    assert folders(tmp_path) == ["step-00000005"]


def truncate(path: Path) -> None:
    os.truncate(path / "tensors.safetensors", 100)


def flip_a_bit(path: Path) -> None:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def write_state(text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / "state.json").write_text(text)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated tensors": truncate,
    "empty tensors": lambda path: os.truncate(path / "tensors.safetensors", 0),
    "one bit": flip_a_bit,
    "no tensors": lambda path: (path / "tensors.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "torn state": write_state('{"step": 2'),
    "empty state": write_state(""),
    "state of zeros": lambda path: (path / "state.json").write_bytes(b"\0" * 64) and None,
    "bytes for state": lambda path: (path / "state.json").write_bytes(b"\xff\xfe") and None,
    "another state": write_state("{}"),
    "a list for state": write_state("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(tmp_path, made(1))
    save(tmp_path, made(2))
    assert load_latest(tmp_path).step == 2  # type: ignore[union-attr]
    DAMAGES[damage](tmp_path / "step-00000002")
    with caplog.at_level(logging.WARNING):
        loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert torch.equal(loaded.tensors["net.weight"], made(1).tensors["net.weight"])
    assert str(tmp_path / "step-00000002") in caplog.text
    assert len(caplog.records) == 1


def test_all_damaged_is_none(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, made(step))
    for step in (1, 2):
        truncate(tmp_path / f"step-0000000{step}")
    assert load_latest(tmp_path) is None


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, made(1))
    save(tmp_path, made(2))
    truncate(tmp_path / "step-00000002")
    save(tmp_path, made(2))
    assert load_latest(tmp_path).step == 2  # type: ignore[union-attr]


def test_damaged_ones_never_push_out_whole_ones(tmp_path: Path) -> None:
    """The run went back to step 0: what it saves now is older in name, and all there is."""
    for step in (20, 30):
        save(tmp_path, made(step))
        truncate(tmp_path / f"step-000000{step}")
    save(tmp_path, made(10))
    assert load_latest(tmp_path).step == 10  # type: ignore[union-attr]
    for step in (20, 30):  # training comes by
        save(tmp_path, made(step))
    assert load_latest(tmp_path).step == 30  # type: ignore[union-attr]
    assert folders(tmp_path) == ["step-00000020", "step-00000030"]


def test_who_was_suspended_removes_nothing_newer(tmp_path: Path) -> None:
    """Another process has gone on meanwhile, and is writing at this moment."""
    for step in (10, 20, 30):
        save(tmp_path, made(step))
    writing = tmp_path / ".step-00000040.99999"
    writing.mkdir()
    save(tmp_path, made(10))
    assert load_latest(tmp_path).step == 30  # type: ignore[union-attr]
    assert writing.exists()


def test_leftovers_of_a_killed_writer_are_ignored_and_cleaned(tmp_path: Path) -> None:
    save(tmp_path, made(1))
    leftover = tmp_path / ".step-00000002.12345"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    then = time.time() - LEFT_SECONDS - 1
    os.utime(leftover, (then, then))
    assert load_latest(tmp_path).step == 1  # type: ignore[union-attr]
    save(tmp_path, made(3))
    assert folders(tmp_path) == ["step-00000001", "step-00000003"]


def test_killed_at_any_file_operation_a_whole_one_is_left(tmp_path: Path) -> None:
    """A process that saves a third one is killed before its n-th file operation, for every n."""

    def save_third(folder: Path, n: int) -> None:
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        at_file_operation(n, kill, "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
        save(folder, made(3))

    newest = []
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        folder.mkdir()
        save(folder, made(1))
        save(folder, made(2))
        process = multiprocessing.get_context("fork").Process(target=save_third, args=(folder, n))
        process.start()
        process.join()
        loaded = load_latest(folder)
        assert loaded is not None
        assert torch.equal(loaded.tensors["net.weight"], made(loaded.step).tensors["net.weight"])
        newest.append(loaded.step)
        save(folder, made(4))  # the next process goes on
        assert load_latest(folder).step == 4  # type: ignore[union-attr]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert newest.count(2) >= 4  # killed while it was written
    assert newest.count(3) >= 4  # killed while the first one was removed


def test_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("pickle was used")

    for module, name in (
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "save"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    save(tmp_path, made(1))
    assert load_latest(tmp_path) is not None
    assert folders(tmp_path / "step-00000001") == ["state.json", "tensors.safetensors"]
    content = (tmp_path / "step-00000001" / "tensors.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header.keys() == made(1).tensors.keys()
