"""``report.html``: one page without any other file, to be looked at, sorted and asked.

Everything is in the HTML as it stands; the script only adds sorting, filters, hover values and
where a cell comes from. The page's policy forbids every request, and every script but its own.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fewstep.analysis.filters import RUN
from fewstep.analysis.summary_types import Summary
from fewstep.reports.content import formatting, provenance
from fewstep.reports.content.captions import caption, figure_caption, of_real_images
from fewstep.reports.content.method_selection import MOST, note
from fewstep.reports.content.provenance import Json, Source
from fewstep.reports.content.published_notes import marks as published_marks
from fewstep.reports.content.report_data import ReportData
from fewstep.reports.content.row_groups import groups, published_value
from fewstep.reports.figures import chart_data
from fewstep.reports.html.svg import Placed
from fewstep.reports.html.thumbnails import tiles
from fewstep.reports.tables import agreement, costs, guidance, published_table
from fewstep.reports.tables.plain import failures

TEMPLATES = Path(__file__).with_name("templates")


def page(sweep: str, views: Sequence[ReportData], frame: pd.DataFrame) -> str:
    """The page of a sweep: a part for each data set, then where all runs come from."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles = list(dict.fromkeys(frame["title"]))
    objectives = dict(zip(frame["method"], (titles.index(t) for t in frame["title"]), strict=True))
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    runs = provenance.runs(frame)
    known = {
        "runs": {key: _without_none(run) for key, run in runs.items()},
        "cells": {
            f"{i}-{method}-{steps}": _known(view.summary, method, steps, sources)
            for i, view in enumerate(views)
            for (method, steps), sources in view.origins.items() if sources
        },
    }  # fmt: skip
    one_look = len(objectives) == len(titles) <= MOST  # then an objective has a colour
    return environment.get_template("report.html.j2").render(
        sweep=sweep,
        facts=_facts(views, frame),
        parts=[_part(view, objectives) for view in views],
        titles=[(title, i if one_look else None) for i, title in enumerate(titles)],
        objectives=objectives,
        runs=runs,
        origin=provenance.summary(frame),
        formatting=formatting,
        caption=caption,
        of_real_images=of_real_images,
        groups=groups,
        published_value=published_value,
        published_marks=published_marks,
        seed_values=chart_data.seed_values,
        short=provenance.short,
        place=Placed,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # in a script element only "<" could end it, or begin a comment
        provenance=Markup(json.dumps(known, separators=(",", ":")).replace("<", "\\u003c")),
    )


def _facts(views: Sequence[ReportData], frame: pd.DataFrame) -> list[tuple[str, str]]:
    runs = frame.drop_duplicates(RUN)
    c = views[0].summary.conditions
    states = runs["status"].where(runs["status"].isin(("done", "failed", "stopped")), "to come")
    counts = states.value_counts()
    budget = " / ".join(f"{s:,}" for s in c.train_steps)
    images = " / ".join(f"{s:,}" for s in c.images_seen)
    facts = [
        ("Data", ", ".join(view.data for view in views)),
        ("Network", ", ".join(c.backbones)),
        ("Training", f"{budget} steps, {images} images" if budget else ""),
        ("Seeds", formatting.listed(c.seeds)),
        ("Samples", f"{c.samples:,}" if c.samples else ""),
        ("Runs", ", ".join(f"{counts[state]:,} {state}"
                           for state in ("done", "failed", "stopped", "to come")
                           if state in counts)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _part(view: ReportData, objectives: Mapping[str, int]) -> Json:
    """What the template shows of one data set."""
    summary, drawn = view.summary, view.drawn
    methods = dict.fromkeys([*drawn.methods, *summary.methods])
    measured = any(cell.n for cell in summary.cells.values())
    return {
        "view": view,
        "summary": summary,
        "tag": {m: {"objective": objectives[m], "look": i} for i, m in enumerate(methods)},
        "heat": _heat(view),
        "shown": [m for m in drawn.methods if any(drawn.cells[m, s].n for s in drawn.steps)],
        "curve": chart_data.fd_vs_nfe(drawn) if measured else None,
        "curve_note": figure_caption(drawn),
        "drawn_note": note(drawn),
        "seed": min(summary.conditions.seeds, default=None),
        "tiles": tiles(view.samples),
        "costs": [t for t in costs.tables(summary, view.costs) if t.rows] if measured else [],
        "published": published_table.table(view.apart, summary.conditions) if view.apart else None,
        "compute": chart_data.compute(drawn, view.cells) if measured else [],
        "over_guidance": chart_data.over_guidance(drawn, view.over_guidance),
        "agreement": agreement.table(view.agreements) if view.agreements else None,
        "scales": guidance.table(summary, view.over_guidance) if view.over_guidance else None,
        "over_training": chart_data.over_training(drawn, view.over_training),
        "seeds": chart_data.seeds(drawn),
        "loss": chart_data.loss(view.curves, drawn.methods),
        "failures": failures(summary) if summary.failures else None,
    }


def _known(summary: Summary, method: str, steps: int, sources: Sequence[Source]) -> Json:
    """What the page's script tells of a cell; what all its runs share is there once."""
    cell, common = summary.cells[method, steps], sources[0].evaluation
    runs = [
        _without_none(vars(source) | ({"evaluation": None} if source.evaluation == common else {}))
        for source in sources
    ]
    return {
        "method": method, "steps": steps, "nfe": cell.nfe,
        "shown": formatting.plain(cell), "evaluation": common, "runs": runs,
    }  # fmt: skip


def _without_none(facts: Mapping[str, Any]) -> Json:
    return {name: value for name, value in facts.items() if value is not None}


def _heat(view: ReportData) -> dict[tuple[str, int], float]:
    """1 for the best mean of the table, 0 for the worst; by the logarithm."""
    better = view.summary.conditions.better
    means = {p: c.mean for p, c in view.summary.cells.items() if c.n and c.mean > 0}
    low, high = (math.log(f(means.values())) if means else 0.0 for f in (min, max))
    if better == "neither" or low == high:
        return {}
    best, worst = (high, low) if better == "higher" else (low, high)
    return {p: (math.log(m) - worst) / (best - worst) for p, m in means.items()}
