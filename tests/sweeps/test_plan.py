"""What a sweep would do: the states of its runs, from real runs brought to each of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
import pytest
from helpers.commands import TINY, tree

import fewstep
from fewstep.backbones.mlp import MLP
from fewstep.errors import UserError
from fewstep.experiments.config import run_config as configuration
from fewstep.experiments.data.toy import Gaussians
from fewstep.experiments.early_stopping import mark_stopped
from fewstep.experiments.run import Interrupted, RunFailed, prepare, run
from fewstep.experiments.store import failures, source_hash
from fewstep.experiments.store.lease import RunLease
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.plan import STATES, Plan, plan

SWEEP = """
name: states
description: one run for each state
axes:
  case:
    - {label: new, training.steps: 3}
    - {label: interrupted, training.steps: 4}
    - {label: failed, training.lr: 1e30}
    - {label: cancelled, training.steps: 10}
    - {label: cells, training.steps: 6}
    - {label: stale, training.steps: 7}
    - {label: running, training.steps: 5}
    - {label: cached, training.steps: 8}
    - {label: stopped, training.steps: 9}
    - {label: unreadable, training.steps: 11}
"""


@pytest.fixture
def sweep(tmp_path: Path):
    (tmp_path / "states.yaml").write_text(SWEEP)

    def planned(*overrides: str) -> Plan:
        made = definition.load(str(tmp_path / "states.yaml"))
        base = [*TINY, "evaluation.steps=[1]", ("runs", str(tmp_path / "runs"))]
        return plan(made.with_overrides([*base, *overrides]))

    return planned


def test_states(sweep, tmp_path):
    first = sweep()
    assert not (tmp_path / "runs").exists()  # a plan writes nothing
    assert first.counts() == {**dict.fromkeys(STATES, 0), "new": len(STATES)}
    first.write()
    assert sweep().counts() == first.counts()  # a directory is no beginning

    runs = {r.member.choices["case"]: r for r in first.runs}
    with pytest.raises(Interrupted):
        run(runs["interrupted"].directory, stop=lambda: True)
    with pytest.raises(RunFailed, match=r"nan: .* step 2"):
        run(runs["failed"].directory)
    for name in ("cells", "stale", "cached"):
        run(runs[name].directory)
    cell = next((runs["cells"].directory.path / "evaluations").iterdir())
    cell.unlink()
    result = runs["stale"].directory.result()
    result["provenance"]["objective_source"] = "another"
    runs["stale"].directory.write("result", result)
    mark_stopped(runs["stopped"].directory, "asha", 500)
    (runs["unreadable"].directory.path / "spec.json").write_text("{")
    cancelled = runs["cancelled"].directory
    cancelled.write("failure", failures.record(cancelled, "cancelled", "by somebody"))

    before = tree(tmp_path)
    with RunLease(runs["running"].directory):
        second = sweep()
    after = tree(tmp_path)
    touched = str(runs["running"].directory.path.relative_to(tmp_path))  # by the claim
    assert {path: after[path] for path in after if not path.startswith(touched)} == {
        path: before[path] for path in before if not path.startswith(touched)
    }
    assert {r.member.choices["case"]: r.state for r in second.runs} == {s: s for s in STATES}
    assert second.counts() == dict.fromkeys(STATES, 1)
    to_do = ["new", "interrupted", "failed", "cancelled", "cells", "running"]
    assert [r.state for r in second.runs if r.to_do] == to_do
    assert sorted(r.state for r in second.to_do) == sorted(to_do)

    of_later = {**runs["failed"].directory.failure(), "class": "of a later version"}
    runs["failed"].directory.write("failure", of_later)
    assert [r.state for r in sweep().runs if r.directory.key == of_later["key"]] == ["failed"]

    result = runs["cached"].directory.result()
    for source, state in {"another": "stale", None: "cached"}.items():
        result["provenance"]["optimiser_source"] = source
        runs["cached"].directory.write("result", result)
        assert [r.state for r in sweep("case=cached").runs] == [state]
    del result["provenance"]["optimiser_source"]  # as version 0.2 wrote it
    runs["cached"].directory.write("result", result)

    more = sweep("evaluation.steps=[1,2]").counts()  # the finished ones, trained as they are
    assert (more["cells"], more["cached"], more["stale"]) == (3, 0, 0)


def test_sweep_json_names_the_members(sweep, tmp_path):
    made = sweep("seeds=2", "case=[new,cached]")
    made.write()
    written = json.loads((tmp_path / "runs/states/sweep.json").read_text())
    assert written == {
        "fewstep": fewstep.__version__,
        "defaults": 2,
        "name": "states",
        "description": "one run for each state",
        "axes": ["case"],
        "runs": [
            {"key": r.directory.key, "seed": seed, "title": "Flow matching", "choices": {"case": c}}
            for r, (c, seed) in zip(
                made.runs, [("new", 0), ("new", 1), ("cached", 0), ("cached", 1)], strict=True
            )
        ],
    }
    for planned in made.runs:
        spec = planned.directory.spec()
        assert spec["key"] == planned.directory.key == planned.member.config.key
        assert spec["config"]["seed"] == planned.member.seed


def test_another_override_makes_new_runs_and_leaves_the_old(sweep, tmp_path):
    old = sweep("case=cached")
    old.write()
    run(old.runs[0].directory)
    before = tree(old.runs[0].directory.path)

    new = sweep("case=cached", "training.lr=3e-4")
    assert new.counts()["new"] == 1
    assert new.runs[0].directory.key != old.runs[0].directory.key
    new.write()
    assert tree(old.runs[0].directory.path) == before
    assert [r.key for r in new.directory.runs()] == [new.runs[0].directory.key]
    assert sweep("case=cached").counts()["cached"] == 1  # and back again, nothing is lost


def test_settings_that_cannot_change_a_result_keep_the_key(sweep):
    keys = {r.directory.key for r in sweep().runs}
    same = sweep("training.log_every=1", "evaluation.steps=[7]", "tracking.enabled=false")
    assert {r.directory.key for r in same.runs} == keys


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("backbone=dit_digits", "a DiT needs square images"),
        ("data=mnist", "mnist not found: looked in"),
        ("evaluation.extractor=cnn", "extractor cnn needs labelled images"),
        ("evaluation.times=[[0.5,0]]", "times must fall strictly from t_max = 1 to 0"),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_anything_is_written(
    tmp_path, monkeypatch, override, told
):
    (tmp_path / "bad.yaml").write_text("base: {data: gaussians}")
    monkeypatch.chdir(tmp_path)
    sweep = definition.load("bad.yaml").with_overrides([override])
    with pytest.raises(UserError, match=told):
        plan(sweep)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_directory_of_another_configuration(sweep):
    made = sweep("case=new")
    made.write()
    directory = made.runs[0].directory
    spec = directory.spec()
    spec["config"]["training"]["lr"] = 0.123
    directory.write("spec", spec)
    with pytest.raises(UserError, match="is from another configuration"):
        sweep("case=new")
    with pytest.raises(UserError, match="is from another configuration"):
        prepare(made.runs[0].member.config)


def test_planning_many_runs_builds_and_loads_each_thing_once(tmp_path, monkeypatch):
    """What makes the plan of 2,000 runs a matter of seconds: docs/sweeps.md."""
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls[f"{owner.__name__}.{name}"] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(MLP, "build")
    count(Gaussians, "load")
    count(hydra, "compose")
    configuration._composed.cache_clear()
    configuration._default_composition.cache_clear()
    source_hash._hash.cache_clear()
    (tmp_path / "many.yaml").write_text(
        "axes:\n"
        "  objective: [flow_matching, shortcut]\n"  # without and with a jump length
        "  backbone.width: [16, 24, 32]\n"
        "  training.lr: {logspace: [1.0e-4, 1.0e-2, 5]}\n"
        "seeds: 4\n"
    )
    sweep = definition.load(str(tmp_path / "many.yaml")).with_overrides(
        [
            *(o for o in TINY if "width" not in o),
            "training.steps=3",
            "evaluation.steps=[]",
            ("runs", str(tmp_path)),
        ]
    )
    assert len(plan(sweep).runs) == 120
    assert calls == {"MLP.build": 6, "Gaussians.load": 1, "hydra.compose": 1}
    done = plan(sweep.with_overrides(["training.lr=1e-4", "backbone.width=16"]))
    done.write()
    finished = [run(planned.directory) for planned in done.runs]
    assert len(finished) == 8
    calls.clear()
    assert plan(sweep).counts()["cached"] == 8
    assert calls["hydra.compose"] == 0
    assert source_hash._hash.cache_info().misses == 3  # two objectives, one backbone
