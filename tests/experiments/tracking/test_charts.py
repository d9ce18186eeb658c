"""The arrangement of charts that ``sync`` leaves for MLflow's pages.

That a browser draws it is in test_tracking_server.py.
"""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from fewstep.experiments.tracking.charts import (
    METHODS,
    RUNS,
    as_written,
    chart_spec,
    differing,
    layout,
    tags,
)

ONE = {"objective.name": "scm", "training.lr": "0.1", "training.steps": "5", "seed": "0"}
TWO = {"objective.name": "ect", "training.lr": "0.2", "training.steps": "5", "seed": "1"}
CELLS = ["kid_vs_nfe", "fd_vs_nfe", "fd_nfe_1", "fd_nfe_16", "fd_nfe_2", "kid_nfe_1", "fd_floor",
         "fd_nfe_1_raw", "fd_vs_nfe_raw", "fd_nfe_16_vs_images", "fd_nfe_2_vs_images"]  # fmt: skip


def test_what_differs_and_all_have() -> None:
    assert differing([]) == []
    assert differing([ONE]) == []
    assert differing([ONE, TWO]) == ["objective.name", "training.lr", "seed"]
    assert differing([ONE, TWO | {"objective.x": "1"}, {"seed": "2"}]) == ["seed"]


def test_what_there_is_to_draw() -> None:
    found = chart_spec([(ONE, CELLS), (TWO, [*CELLS, "fd_nfe_64"])])
    assert found.over_training == ["fd_nfe_2_vs_images", "fd_nfe_16_vs_images"]
    assert found.over_nfe == ["fd_vs_nfe", "fd_vs_nfe_raw", "kid_vs_nfe"]
    assert found.flat == ["fd_nfe_1", "fd_nfe_2", "fd_nfe_16"]  # by number, and what both have
    assert found.hyperparameters == ["objective.name", "training.lr"]  # a seed is none
    nothing = chart_spec([])
    assert (nothing.over_nfe, nothing.flat, nothing.hyperparameters) == ([], [], ["seed"])


@pytest.mark.parametrize("averaged", [True, False])
def test_the_layout(averaged: bool) -> None:
    shown = layout(chart_spec([(ONE, CELLS), (TWO, CELLS)]), averaged)
    sections = {section["uuid"]: section["name"] for section in shown["compareRunSections"]}
    charts = shown["compareRunCharts"]
    columns = {section["name"]: section.get("columns") for section in shown["compareRunSections"]}
    assert columns["Quality"] == 3
    assert columns.get("Hyperparameters", 1) == 1  # of a single chart
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    placed = [(sections[chart["metricSectionId"]], chart["type"]) for chart in charts]
    quality = [("Quality", "LINE")] * 3
    assert placed[:4] == (
        [*quality, ("Over training", "LINE")]
        if averaged
        else [("Hyperparameters", "PARALLEL"), *quality]
    )
    drawn = {c["metricKey"]: c for c in charts if c["type"] == "LINE"}
    fd, kid = drawn["fd_vs_nfe"], drawn["kid_vs_nfe"]
    assert (fd["xAxisKey"], fd["xAxisScaleType"], fd["scaleType"]) == ("step", "log", "log")
    assert (kid["xAxisScaleType"], kid["scaleType"]) == ("log", "linear")  # it may be below zero
    if not averaged:
        assert charts[0]["selectedMetrics"] == ["fd_nfe_1", "fd_nfe_2", "fd_nfe_16"]
        assert charts[0]["selectedParams"] == ["objective.name", "training.lr"]
    assert (shown["groupBy"] is None) != averaged


def test_the_tags_hold_the_layouts_and_are_short() -> None:
    found = chart_spec([(ONE, CELLS * 9), (TWO, CELLS * 9)])
    told = tags(found)
    assert tags(found) == told
    for key, averaged in ((METHODS, True), (RUNS, False)):
        tag = told[f"mlflow.sharedViewState.{key}"]
        assert len(tag) < 5000  # what an experiment's tag may hold
        head, _, body = tag.partition(";")
        assert head == "deflate"
        assert json.loads(zlib.decompress(base64.b64decode(body))) == layout(found, averaged)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("Loss over t, d = 1/2: x - y.", "Loss over t, d = 1/2: x - y."),
        ("<b>&lt;</b>", "&lt;b&gt;&amp;lt;&lt;/b&gt;"),
        ("a_b *c* `d` ~e~ |f| @g \\h", r"a\_b \*c\* \`d\` \~e\~ \|f\| \@g \\h"),
        ("[a](b)\n# c", "\\[a\\](b)\n\\# c"),
        ("a\n===\n- b\n12. c\n+ d", "a\n\\===\n\\- b\n12\\. c\n\\+ d"),
        ("a\n  - b\n\tc", "a\n&nbsp;&nbsp;\\- b\n&nbsp;&nbsp;&nbsp;&nbsp;c"),
    ],
)
def test_nothing_in_a_description_is_markup(written: str, told: str) -> None:
    assert as_written(written) == told
