"""A finished run whose training curve is lost or damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import tiny

from fewstep.analysis.frame import load
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.metrics_file import curve_problem
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of six steps with a line for every second."""
    directory = prepare(tiny(tmp_path_factory.mktemp("runs"), "training.log_every=2"))
    run(directory)
    return directory


def without(*gone: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line for i, line in enumerate(lines) if i not in gone]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda lines: lines, None),
        (lambda lines: None, "cannot be read (No such file or directory)"),
        (lambda lines: [], "ends at step 0 of 6"),
        (without(2), "ends at step 4 of 6"),
        (without(1, 2), "ends at step 2 of 6"),
        (without(0), "has no line between steps 0 and 4"),
        (without(1), "has no line between steps 2 and 6"),
        (lambda lines: [*lines[:2], lines[2][:-9]], "is damaged: 1 of 3 lines"),
        (lambda lines: [*lines[:2], lines[2][:-9] + b"\xff\x00" + lines[2][-9:]], "is damaged: 1"),
        (lambda lines: [b"\0" * 300], "is damaged: 1 of 1 lines"),
        (lambda lines: [json.dumps(json.loads(x), sort_keys=True).encode() for x in lines], None),
    ],
)
def test_what_is_missing_is_named(
    finished: RunDirectory, damage: Callable[[list[bytes]], Any], told: str | None
) -> None:
    content = finished.metrics_file.read_bytes()
    try:
        if (lines := damage(content.splitlines())) is None:
            finished.metrics_file.unlink()
        else:
            finished.metrics_file.write_bytes(b"".join(line + b"\n" for line in lines))
        problem = curve_problem(finished)
        assert (problem is None) == (told is None)
        if told is not None:
            assert problem is not None
            assert told in problem
            with pytest.warns(UserWarning, match="training curves: .*metrics.jsonl"):
                load(SweepDirectory(finished.path.parent))  # its values stand
    finally:
        finished.metrics_file.write_bytes(content)


def test_one_that_has_not_ended_may_lack_lines(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "training.log_every=2"))
    assert curve_problem(directory) is None


def test_lines_may_be_as_far_apart_as_one_of_the_settings_says(finished: RunDirectory) -> None:
    """``log_every`` may change while a run is interrupted."""
    spec, request = finished.spec(), finished.request()
    assert spec is not None
    assert request is not None
    lines = finished.metrics_file.read_bytes().splitlines(keepends=True)
    try:
        finished.metrics_file.write_bytes(lines[2])  # of step 6 alone
        assert curve_problem(finished) is not None
        finished.write("request", {**request, "bookkeeping": {"log_every": 6}})
        assert curve_problem(finished) is None
        finished.write("request", {**request, "bookkeeping": {"log_every": 0}})
        assert curve_problem(finished) is None
        (finished.path / "request.json").write_text("{")
        assert curve_problem(finished) is not None
    finally:
        finished.write("request", request)
        finished.metrics_file.write_bytes(b"".join(lines))
