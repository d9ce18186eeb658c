"""A recorded command makes the same run again, and the same cell; records say what made them."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest
from helpers.tiny import TINY, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.analysis import load
from fewstep.experiments.config.overrides import format_override
from fewstep.experiments.config.reproduce import command
from fewstep.experiments.config.run_config import compose, parse
from fewstep.experiments.evaluation.evaluate import cells_lacking
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store import provenance
from fewstep.objectives import OBJECTIVES

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["C", "Z"], max_codepoint=0x2FF) | st.just(" "))
    | st.sampled_from(["true", "null", "1", "1e3", "a\\", "\\'", "it's", "", "[1]", "a,b", "x=y",
                      "1_0", "nan", "-Inf", "NULL", "0x1", "1.", ".", "-"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "dimension", "k"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(deadline=None)  # of 0.2 s, on a busy machine
@given(VALUES)
def test_a_value_is_read_back_as_it_was_written(value: object) -> None:
    found = parse(f"key={format_override(value)}")[1]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_the_command_of_a_run_makes_its_key(objective: str, tmp_path: Path) -> None:
    there: list[object] = []
    if OBJECTIVES[objective].needs_teacher:
        teacher = prepare(tiny(tmp_path, "sweep=other"))
        there = [("teacher", str(teacher.path))]
    config = compose(
        [*TINY, f"objective={objective}", "seed=3", "training.betas=[0.8,0.9]",
         "training.clip=null", "training.device=cpu", "data.test_images=400",
         ("runs", str(tmp_path)), *there]
    )  # fmt: skip
    words = shlex.split(command(config))
    assert words[:2] == ["fewstep", "train"]
    assert str(tmp_path) not in command(config)  # a teacher is named by its key
    again = compose([*words[2:], ("runs", str(tmp_path))])
    assert again.key == config.key
    for word in words[5:]:  # nothing too much: each word is needed
        fewer = [w for w in words[2:] if w != word]
        assert compose([*fewer, ("runs", str(tmp_path))]).key != config.key or word == "seed=0"


def test_the_command_of_a_cell_makes_that_cell(tmp_path: Path) -> None:
    cells = ["evaluation.steps=[2]", "evaluation.times=[[1.0,0.3,0.0]]", "evaluation.samples=65",
             "evaluation.weights=[raw]", "evaluation.guidance=[1.0,1.5]",
             "evaluation.guidance_interval=[0.1,0.9]", "evaluation.sample_sets=2"]  # fmt: skip
    config = tiny(tmp_path, *cells, "training.label_dropout=0.5", "objective.solver=heun")
    directory = prepare(config)
    run(directory)
    frame = load(directory.path.parent)
    assert len(frame) == 8
    spec = directory.spec()
    assert spec is not None
    assert set(frame["command"]) == {spec["command"]} == {command(config)}
    for row in frame.to_dict("records"):
        words = shlex.split(f"{row['command']} {row['evaluation']}")[2:]
        again = compose([*words, ("runs", str(tmp_path))])
        assert again.key == config.key
        assert cells_lacking(again, directory) == 0
        steps, times = again.evaluation.steps, again.evaluation.times
        assert ([row["steps"]], []) == (steps, times) or (steps, len(times)) == ([], 1)


@pytest.mark.parametrize(
    "asked",
    [
        ["evaluation.metrics=[fd,kid,{name: kid, degree: 2}]"],
        ["evaluation.extractor={name: pca, dimension: 8}", "evaluation.metrics=[precision]"],
        ["evaluation.extractor=[raw,{name: random_conv, seed: 3}]", "evaluation.reference=test"],
    ],
)
def test_the_command_of_a_cell_takes_its_metric_and_extractor(
    asked: list[str], tmp_path: Path
) -> None:
    config = tiny(tmp_path, "evaluation.steps=[1]", "evaluation.samples=65", *asked)
    directory = prepare(config)
    run(directory)
    frame = load(directory.path.parent)
    assert len(frame) == len(config.evaluation.metric_requests())
    for row in frame.to_dict("records"):
        again = compose([*shlex.split(f"{row['command']} {row['evaluation']}")[2:],
                         ("runs", str(tmp_path))])  # fmt: skip
        assert again.key == config.key
        (one,) = again.evaluation.metric_requests()
        assert one == directory.cells()[row["cell"]]["asked"]
        assert cells_lacking(again, directory) == 0


def test_a_result_and_its_cells_say_what_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"launcher": "slurm", "id": "4711_2", "node": "n1"}
    monkeypatch.setenv(provenance.JOB, json.dumps(told))
    directory = prepare(tiny(tmp_path, "evaluation.steps=[1]"))
    made = run(directory)["provenance"]
    file = tmp_path / "_cache" / "environments" / f"{made['lock']}.txt"
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] == made["lock"]
    versions = file.read_text().splitlines()
    assert f"torch=={made['versions']['torch'].partition('+')[0]}" in [
        line.partition("+")[0] for line in versions
    ]
    assert made["job"] == told
    assert made["device_name"]
    (cell,) = directory.cells().values()
    kept = ("fewstep", "commit", "dirty", "lock", "host", "job")
    assert cell["provenance"] == {name: made[name] for name in kept}
    row = load(directory.path.parent).iloc[0]
    assert (row["job"], row["evaluated_job"], row["lock"]) == (
        "slurm 4711_2", "slurm 4711_2", made["lock"])  # fmt: skip
    assert row["device"] == made["device_name"]
