"""``report.html``: one page without any other file, to be looked at, sorted and asked.

Everything is in the HTML as it stands; the script only adds sorting, filters, hover values and
where a cell comes from. The page's policy forbids every request, and every script but its own.
"""

from __future__ import annotations

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

from fewstep.analysis.records import Cell, Summary
from fewstep.analysis.selection import RUN
from fewstep.reports import apart, charts, costs, provenance, text
from fewstep.reports.captions import caption, figure_caption
from fewstep.reports.drawn import MOST, note
from fewstep.reports.provenance import Origin
from fewstep.reports.published import Published
from fewstep.reports.rows import groups, published_value
from fewstep.reports.svg import swatch
from fewstep.reports.tables import exact
from fewstep.reports.tiles import tiles
from fewstep.reports.view import View

TEMPLATES = Path(__file__).with_name("templates")
Json = dict[str, Any]


def page(sweep: str, views: Sequence[View], frame: pd.DataFrame) -> str:
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
    parts = [_view(i, view, objectives) for i, view in enumerate(views)]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    found = provenance.runs(frame)
    known = {"runs": {key: _told(run) for key, run in found.items()},
             "cells": {k: c for part in parts for k, c in part["known"].items()}}  # fmt: skip
    one_look = len(objectives) == len(titles) <= MOST  # then an objective has a colour
    return environment.get_template("report.html.j2").render(
        sweep=sweep,
        facts=_facts(views, frame),
        views=parts,
        objectives=[{"title": t, "look": i if one_look else None} for i, t in enumerate(titles)],
        runs=[
            {"key": key, **run, "objective": objectives[run["method"]],
             "commit": provenance.short(run["commit"], run["dirty"]), "lock": run["lock"] or "–",
             "status": run["failure_class"] or run["status"],
             "where": " on ".join(filter(None, (run["job"], run["host"]))) or "–"}
            for key, run in found.items()
        ],
        origin=origin(frame),
        swatch=swatch,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        # in a script element only "<" could end it, or begin a comment
        provenance=Markup(json.dumps(known, separators=(",", ":")).replace("<", "\\u003c")),
    )  # fmt: skip


def origin(frame: pd.DataFrame) -> str:
    """Commits, packages and machines of all runs, in a few sentences."""
    runs = frame.drop_duplicates(RUN)

    def told(column: str, name: str) -> str:
        return f"{name}: {', '.join(map(str, runs[column].dropna().unique())) or 'unknown'}."

    dirty = int(runs["dirty"].fillna(False).sum())
    return " ".join([
        told("commit", "Commits"), told("lock", "Packages"), told("host", "Hosts"),
        f"Runs from a tree with uncommitted changes: {dirty} of {len(runs)}.",
    ])  # fmt: skip


def _facts(views: Sequence[View], frame: pd.DataFrame) -> list[tuple[str, str]]:
    runs = frame.drop_duplicates(RUN)
    c = views[0].summary.conditions
    states = {
        state: int((runs["status"] == state).sum()) for state in ("done", "failed", "stopped")
    }
    rest = len(runs) - sum(states.values())
    counts = [f"{n:,} {state}" for state, n in {**states, "to come": rest}.items() if n]
    budget = " / ".join(f"{s:,}" for s in c.train_steps)
    images = " / ".join(f"{s:,}" for s in c.images_seen)
    facts = [
        ("Data", ", ".join(view.data for view in views)),
        ("Network", ", ".join(c.backbones)),
        ("Training", f"{budget} steps, {images} images" if budget else ""),
        ("Seeds", text.listed(c.seeds)),
        ("Samples", f"{c.samples:,}" if c.samples else ""),
        ("Runs", ", ".join(counts)),
    ]
    return [(name, value) for name, value in facts if value]


def _view(index: int, view: View, objectives: Mapping[str, int]) -> Json:
    summary, drawn = view.summary, view.drawn
    looks = {m: i for i, m in enumerate(dict.fromkeys([*drawn.methods, *summary.methods]))}
    attributes = {
        m: f'data-objective="{objectives[m]}" data-method="{i}"' for m, i in looks.items()
    }
    measured = any(cell.n for cell in summary.cells.values())
    shown = [m for m in drawn.methods if any(drawn.cells[m, s].n for s in drawn.steps)]
    tag = {
        m: {"objective": objectives[m], "look": looks[m], "drawn": m in drawn.methods}
        for m in summary.methods
    }
    ids = {place: f"{index}-{looks[place[0]]}-{place[1]}" for place in summary.cells}
    heat = _heat(view)
    return {
        "data": view.data,
        "metric": summary.conditions.metric,
        "steps": summary.steps,
        "floor": None if summary.floor is None else text.number(summary.floor),
        "caption": caption(summary, view.published, "as n"),
        "measured": measured,
        "shown": [{"name": m, **tag[m]} for m in shown],
        "diagnosed": [{"name": m, **tag[m]} for m in view.curves],
        "groups": [
            {
                "title": group.title,
                "rows": [
                    {"method": m, **tag[m],
                     "cells": [_cell(summary.cells[m, s], ids[m, s], heat.get((m, s)))
                               for s in summary.steps]}
                    for m in group.methods
                ],
                "published": [
                    {"label": row.label, "where": row.where,
                     "cells": [(published_value(row, s), row.values.get(s, ""))
                               for s in summary.steps]}
                    for row in group.published
                ],
            }
            for group in groups(summary, view.published)
        ],
        "apart": _apart(view.apart),
        "curve": charts.fd_vs_nfe(drawn, attributes) if measured else "",
        "curve_note": figure_caption(drawn),
        "drawn_note": note(drawn),
        "tiles": _tiles(view, tag),
        "costs": _costs(view, tag) if measured else [],
        "compute": charts.compute(drawn, view.cells, attributes) if measured else [],
        "seeds": charts.seeds(drawn, attributes) if measured else [],
        "loss": charts.loss(drawn, view.curves, attributes),
        "methods": view.methods,
        "failures": [(f.method, f.seed, f.kind, f.message, f.key) for f in summary.failures],
        "known": {
            ids[origin.method, origin.steps]: _known(origin, summary)
            for origin in view.origins if origin.sources
        },
    }  # fmt: skip


def _known(origin: Origin, summary: Summary) -> Json:
    """What the page's script tells of a cell; what all its runs share is there once."""
    cell = summary.cells[origin.method, origin.steps]
    common = origin.sources[0].evaluation
    return {
        "method": origin.method, "steps": origin.steps, "nfe": cell.nfe,
        "shown": text.plain(cell), "evaluation": common,
        "runs": [
            _told({"seed": s.seed, "value": s.value, "run": s.run, "evaluated": s.evaluated,
                   "evaluation": None if s.evaluation == common else s.evaluation})
            for s in origin.sources
        ],
    }  # fmt: skip


def _told(facts: Json) -> Json:
    """Without what is not known."""
    return {name: value for name, value in facts.items() if value is not None}


def _cell(cell: Cell, identifier: str, heat: float | None) -> Json:
    value, spread = text.mean_and_spread(cell) if cell.n else ("", "")
    tip = "\n".join(f"seed {s}: {text.number(v)}" for s, v in cell.values.items())
    return {
        "id": identifier, "value": value, "spread": spread, "sort": exact(cell.mean), "tip": tip,
        "best": cell.best, "second": cell.second, "tie": cell.tie, "complete": cell.complete,
        "account": text.account(cell), "missing": text.no_value(cell),
        "heat": None if heat is None else f"{heat:.2f}",
    }  # fmt: skip


def _heat(view: View) -> dict[tuple[str, int], float]:
    """1 for the best mean of the table, 0 for the worst; by the logarithm."""
    better = view.summary.conditions.better
    if better == "neither":
        return {}
    means = {p: c.mean for p, c in view.summary.cells.items() if c.n and c.mean > 0}
    if len(means) < 2:
        return {}
    low, high = math.log(min(means.values())), math.log(max(means.values()))
    if low == high:
        return {}
    best, worst = (high, low) if better == "higher" else (low, high)
    return {p: (math.log(m) - worst) / (best - worst) for p, m in means.items()}


def _costs(view: View, tag: Mapping[str, Json]) -> list[Json]:
    return [
        {
            "title": table.title, "header": table.header, "rows": table.rows, "note": table.note,
            "sorts": [("", *map(exact, values)) for values in table.values],
            "tags": [(tag[row[0]]["objective"], tag[row[0]]["look"]) for row in table.rows],
        }
        for table in costs.tables(view.summary, view.costs) if table.rows
    ]  # fmt: skip


def _tiles(view: View, tag: Mapping[str, Json]) -> list[Json]:
    """Rows of pictures; of those that could not be, why."""
    if not view.samples:
        return []
    drawn = tiles(view.samples)
    seed = min(view.summary.conditions.seeds, default=None)

    def why(method: str, steps: int) -> str:
        cell = view.summary.cells[method, steps]
        failed, stopped = seed in cell.failed_seeds, seed in cell.stopped_seeds
        return "failed" if failed else "stopped" if stopped else "missing"

    return [
        {"method": m, **tag[m],
         "tiles": [(drawn.get((m, s)), why(m, s)) for s in view.summary.steps]}
        for m in view.drawn.methods
    ]  # fmt: skip


def _apart(rows: Sequence[Published]) -> Json | None:
    if not rows:
        return None
    return {
        "title": apart.title(rows),
        "note": f"{apart.NOTE} {apart.note(rows)}",
        "header": apart.header(rows),
        "rows": apart.body(rows),
    }
