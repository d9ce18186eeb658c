"""The arrangement of charts that ``sync`` leaves for MLflow's pages.

That a browser draws it is in test_tracking_server.py.
"""

from __future__ import annotations

import base64
import json
import zlib

from fewstep.experiments.tracking_view import charted, differing, encode, layout

ONE = {"objective.name": "scm", "training.lr": "0.1", "training.steps": "5", "seed": "0"}
TWO = {"objective.name": "ect", "training.lr": "0.2", "training.steps": "5", "seed": "1"}
CELLS = ["kid_vs_nfe", "fd_vs_nfe", "fd_nfe_1", "fd_nfe_16", "fd_nfe_2", "kid_nfe_1", "fd_floor",
         "fd_nfe_1_raw", "fd_vs_nfe_raw"]  # fmt: skip


def test_what_differs_and_all_have() -> None:
    assert differing([]) == []
    assert differing([ONE]) == []
    assert differing([ONE, TWO]) == ["objective.name", "training.lr", "seed"]
    assert differing([ONE, TWO | {"objective.x": "1"}, {"seed": "2"}]) == ["seed"]


def test_what_there_is_to_draw() -> None:
    found = charted([(ONE, CELLS), (TWO, [*CELLS, "fd_nfe_64"])], ["fewstep.axis.objective"])
    assert found.over_nfe == ["fd_vs_nfe", "fd_vs_nfe_raw", "kid_vs_nfe"]
    assert found.flat == ["fd_nfe_1", "fd_nfe_2", "fd_nfe_16"]  # by number, and what both have
    assert found.hyperparameters == ["objective.name", "training.lr"]  # a seed is none
    assert found.axes == ["fewstep.axis.objective"]
    nothing = charted([], [])
    assert (nothing.over_nfe, nothing.flat, nothing.hyperparameters) == ([], [], [])


def test_the_layout() -> None:
    found = charted([(ONE, CELLS), (TWO, CELLS)], ["fewstep.axis.objective"])
    shown = layout(found)
    sections = {section["uuid"]: section["name"] for section in shown["compareRunSections"]}
    charts = shown["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    placed = [(sections[chart["metricSectionId"]], chart["type"]) for chart in charts]
    assert placed[:4] == [("Quality", "LINE")] * 3 + [("Hyperparameters", "PARALLEL")]
    fd = charts[0]
    assert (fd["metricKey"], fd["xAxisKey"]) == ("fd_vs_nfe", "step")
    assert (fd["xAxisScaleType"], fd["scaleType"]) == ("log", "log")
    kid = charts[2]
    assert (kid["xAxisScaleType"], kid["scaleType"]) == ("log", "linear")  # it may be below zero
    assert shown["groupBy"]["groupByKeys"] == [
        {"mode": "tag", "groupByData": "fewstep.axis.objective"}
    ]
    assert layout(charted([(ONE, CELLS)], []))["groupBy"] is None


def test_the_tag_holds_the_layout_and_is_short() -> None:
    found = charted([(ONE, CELLS * 9), (TWO, CELLS * 9)], ["fewstep.axis.objective"])
    tag = encode(found)
    assert len(tag) < 5000  # what an experiment's tag may hold
    head, _, body = tag.partition(";")
    assert head == "deflate"
    assert json.loads(zlib.decompress(base64.b64decode(body))) == layout(found)
    assert encode(found) == tag
