"""Costs are sums and means that can be done by hand; a teacher's share is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_sweep
from scipy import stats

from fewstep.analysis import load, summarise
from fewstep.analysis.columns import add_teachers, cell_origin
from fewstep.analysis.costs import Cost, Costs, costs, improvement
from fewstep.errors import UserError
from fewstep.experiments.config.overrides import format_override
from fewstep.reports.tables.costs import tables

TWO = {"processes": 2, "device_name": "H200"}


def runs() -> list[Run]:
    """FM takes 50 s; CD learns from its seed 0 in 100 s on two devices; PD from CD's seed 0."""
    return [
        *(Run("FM", s, {1: 90.0 + s, 4: 10.0}) for s in range(2)),
        *(Run("CD", s, {1: 30.0 + s, 4: 20.0}, teacher="fm-s0", seconds=100.0, provenance=TWO)
          for s in range(2)),
        Run("PD", 0, {1: 45.0}, teacher="cd-s0", seconds=25.0),
        Run("CT", 0, failure="nan"),
    ]  # fmt: skip


def by_method(table: Costs) -> dict[str, Cost]:
    return {row.method: row for row in table.rows}


def test_costs_and_the_teachers_share(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, runs()))
    found = costs(summarise(frame), frame)
    assert found.baseline == "FM"
    assert found.devices == ("H200",)
    fm, cd, pd_, ct = found.rows
    assert (fm.steps_per_second, fm.seconds_per_step, fm.speedup) == (10.0, 0.1, 0.0)
    assert (fm.images_seen, fm.teacher_images_seen, fm.total_images_seen) == (64000, 0, 64000)
    assert fm.total_device_hours == pytest.approx(50 / 3600)
    assert (cd.steps_per_second, cd.speedup) == (5.0, -50.0)
    assert cd.device_hours == pytest.approx(2 * 100 / 3600)  # processes times hours
    assert cd.total_device_hours == pytest.approx((200 + 50) / 3600)
    assert (cd.train_seconds, cd.total_train_seconds) == (100.0, 150.0)
    assert cd.total_images_seen == 2 * 64000
    # a teacher's teacher counts too
    assert pd_.teacher_device_hours == pytest.approx((200 + 50) / 3600)
    assert pd_.teacher_images_seen == 2 * 64000
    assert math.isnan(ct.device_hours)
    assert ct.runs == 0
    assert {s: round(v) for s, v in cd.sampling.items()} == {1: 300, 4: 75}


def test_the_gain_is_the_paired_log_ratio(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, runs()))
    cd = by_method(costs(summarise(frame), frame))["CD"]
    logs = np.log([30 / 90, 31 / 91])
    half = stats.t.ppf(0.975, 1) * logs.std(ddof=1) / 2**0.5
    expected = 100 * (1 - np.exp(logs.mean() + np.array([0, half, -half])))
    gain = cd.gain[1]
    assert gain is not None
    assert improvement(gain) == pytest.approx(expected)
    assert improvement(gain)[1] < improvement(gain)[0] < improvement(gain)[2]
    worse = cd.gain[4]
    assert worse is not None
    assert improvement(worse)[0] == pytest.approx(-100)
    pd_ = by_method(costs(summarise(frame), frame))["PD"]
    assert pd_.gain[4] is None  # no seed that both have


def test_another_baseline(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, runs()))
    summary = summarise(frame)
    assert by_method(costs(summary, frame, "CD"))["FM"].speedup == 100.0
    with pytest.raises(UserError, match=r"unknown baseline 'CDD'; did you mean 'CD'\?"):
        costs(summary, frame, "CDD")


def test_a_teacher_from_another_sweep_is_counted(tmp_path: Path) -> None:
    write_sweep(tmp_path, runs(), name="before")
    student = Run("reflow", 0, {1: 5.0}, teacher="cd-s1")
    frame = load(write_sweep(tmp_path, [student]))
    assert frame["teacher_device_hours"].iloc[0] == pytest.approx((200 + 50) / 3600)
    assert frame["teacher_images_seen"].iloc[0] == 2 * 64000
    assert summarise(frame).two_phase == {"reflow"}
    lost = load(write_sweep(tmp_path, [Run("x", 0, {1: 5.0}, teacher="gone")], name="lost"))
    assert lost["teacher_images_seen"].isna().all()
    row = costs(summarise(lost), lost).rows[0]
    assert math.isnan(row.total_device_hours)  # unknown is not nothing


def test_phases_are_known_from_the_runs(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, runs()))
    assert summarise(frame).two_phase == {"CD", "PD"}
    assert frame.drop_duplicates("key")["teacher"].fillna("-").tolist() == [
        "-", "-", "fm-s0", "fm-s0", "cd-s0", "-"]  # fmt: skip


def test_protocol_and_origin_are_columns(tmp_path: Path) -> None:
    training = {"steps": 500, "batch_size": 64, "lr": 2e-3, "betas": [0.9, 0.99], "clip": None}
    made = {"lock": "abc", "job": {"launcher": "slurm", "id": "7_1"}, "versions": {"torch": "2.13"}}
    run = Run(
        "A", 0, {1: 1.0}, provenance=made,
        config={"training": training, "objective": {"name": "a", "target": "online", "n": [1, 2]}},
    )  # fmt: skip
    row = load(write_sweep(tmp_path, [run])).iloc[0]
    assert (row["batch_size"], row["lr"], row["betas"]) == (64, 2e-3, "0.9 0.99")
    assert row[["clip", "ema"]].isna().all()
    assert row["objective_settings"] == "target=online, n=[1,2]"
    assert (row["lock"], row["job"], row["torch"]) == ("abc", "slurm 7_1", "2.13")
    assert row["command"] == "fewstep train seed=0"


def test_settings_that_make_a_cell() -> None:
    cell = {"steps": 2, "times": [1.0, 0.3, 0.0], "weights": "raw", "guidance": 1.5,
            "sample_set": 1,
            "sampler": {"solver": "heun", "guidance_interval": "0.1-0.9"}}  # fmt: skip
    told = cell_origin({"cell": cell, "asked": {"samples": 32, "extractor": "raw"}})["evaluation"]
    assert told.replace("'", "").split() == [
        "evaluation.steps=[]", "evaluation.times=[[1.0,0.3,0.0]]", "evaluation.weights=[raw]",
        "evaluation.guidance=[1.5]", "evaluation.sample_sets=2", "evaluation.samples=32",
        "evaluation.extractor=raw", "evaluation.guidance_interval=[0.1,0.9]",
        "objective.solver=heun",
    ]  # fmt: skip
    assert [format_override(v) for v in (None, True, 1, [0, False])] == [
        "null",
        "true",
        "1",
        "[0,false]",
    ]


def test_how_many_diverged_or_spiked(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, [
        *(Run("FM", s, {1: 90.0}) for s in range(2)),
        Run("FM", 2, done=False),  # has not ended
        Run("FM", 3, failure="oom"),  # nor has this one
        Run("CT", 0, {1: 9.0}), Run("CT", 1, {1: 9.0}), Run("CT", 2, failure="nan"),
    ])  # fmt: skip
    for key, last in (("fm-s0", 1.0), ("fm-s3", 50.0), ("ct-s0", 50.0), ("ct-s1", 1.0)):
        norms = [1.0] * 9 + [last]
        every = 25 if key == "fm-s3" else 50
        lines = [{"step": every * (i + 1), "grad_norm": n} for i, n in enumerate(norms)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (sweep / key / "metrics.jsonl").write_text(text)
    frame = load(sweep)
    spikes = dict(zip(frame["key"], frame["first_spike"], strict=True))
    assert (spikes["fm-s0"], spikes["ct-s0"], spikes["ct-s1"]) == (0, 500, 0)
    assert spikes["fm-s1"] is pd.NA  # its norms are not known
    fm, ct = costs(summarise(frame), frame).rows
    assert (fm.ended, fm.diverged, fm.spiked) == (2, 0, 0)
    assert (ct.ended, ct.diverged, ct.spiked) == (3, 1, 2)
    table = next(t for t in tables(summarise(frame), costs(summarise(frame), frame))
                 if t.title == "Stability of training")  # fmt: skip
    assert [list(row) for row in table.rows] == [
        ["FM", "2", "0", "0", "0%"], ["CT", "3", "1", "2", "67%"]
    ]  # fmt: skip


def test_a_run_that_two_learned_from_is_counted_once_and_a_lost_one_makes_the_sum_unknown(
    tmp_path: Path,
) -> None:
    taught = {"teacher": "t", "weak_teacher": "w"}
    facts: list[dict[str, Any]] = [
        {"key": "w", "images_seen": 3},
        {"key": "t", "images_seen": 10, "teacher": "w"},
        {"key": "student", "images_seen": 7, **taught},
        {"key": "orphan", "images_seen": 1, "teacher": "gone"},
        {"key": "grandchild", "images_seen": 1, "teacher": "orphan"},
    ]
    add_teachers(facts, tmp_path)
    found = [fact["teacher_images_seen"] for fact in facts]
    assert found == [None, 3, 10 + 3, None, None]
