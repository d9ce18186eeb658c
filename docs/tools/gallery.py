"""The generated parts of the gallery: facts, settings, pictures and published numbers.

A page of ``docs/gallery/`` names its registry entries (``objectives``) and, where papers call the
method otherwise than we do, its names in ``reports/content/published.csv`` (``published``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/gallery"
RANGES = {
    "ode": "as far as the flow is straight",
    "to_data": "from any time to the data; further steps add fresh noise",
    "one_step": "from noise to data only",
    "any": "from any time to any earlier time",
}


def registry() -> Any:
    """All objectives by name."""
    from fewstep.objectives import OBJECTIVES

    return OBJECTIVES


def sources() -> dict[str, dict[str, Any]]:
    """The front matter of each page by the page's name, in the order of the site's navigation."""
    order = re.findall(r"gallery/(\w+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [p for p in PAGES.glob("*.md") if p.stem != "index"]
    return {p.stem: front_matter(p) for p in sorted(pages, key=lambda p: order.index(p.stem))}


def front_matter(page: Path) -> dict[str, Any]:
    """What stands between the first two lines of three dashes."""
    return dict(yaml.safe_load(page.read_text(encoding="utf-8").split("---\n")[1]))


def parts(names: Sequence[str], published: Sequence[str] | None) -> Mapping[str, Callable[[], str]]:
    """What fills each marked place of a page about the objectives ``names``."""
    first = registry()[names[0]]
    return {
        "facts": lambda: facts(names),
        "settings": lambda: settings(names),
        "toy": lambda: picture(names[0]),
        "published": lambda: published_numbers(published or [first.title]),
    }


def facts(names: Sequence[str]) -> str:
    """A table of what the code says about the objective."""
    one = registry()[names[0]]
    module = inspect.getmodule(type(one))
    assert module is not None
    by_cost = {cost(registry()[name]): name for name in reversed(names)}
    costs = (
        next(iter(by_cost))
        if len(by_cost) == 1
        else ", ".join(f"{value} (`{name}`)" for value, name in reversed(by_cost.items()))
    )
    rows = {
        "registry name": ", ".join(f"`{name}`" for name in names),
        "code": f"`objectives/{module.__name__.split('.')[-1]}.py`",
        "path": _path(one),
        "one step goes": RANGES[one.jump_range],
        "the network gets the jump length d": "yes" if one.uses_jump else "no",
        "training step": f"{costs} times that of flow matching, in passes through the network",
        "needs a teacher": _teacher(one),
        "can be a teacher": "yes" if one.can_teach else "no",
    }
    return _table(["", ""], [[k, v] for k, v in rows.items()])


def cost(objective: Any) -> str:
    """The stated cost of a training step, in steps of flow matching."""
    value = objective.step_cost()
    return "not stated" if value is None else f"{value:.2f}"


def _path(one: Any) -> str:
    name = type(one.path).__name__
    return "TrigFlow" if name.startswith("Trig") else "linear"


def _teacher(one: Any) -> str:
    if not one.needs_teacher:
        return "no"
    return "yes, for stored pairs of noise and data" if one.needs_pairs else "yes"


def settings(names: Sequence[str]) -> str:
    """A table of the hyperparameters, with the defaults of each registry entry."""
    entries = [registry()[name] for name in names]
    # of registry entries with the same defaults, the first stands for all
    shown = [i for i, e in enumerate(entries) if e not in entries[:i]]
    told = descriptions(type(entries[0]))
    header = [
        "setting",
        *(["default"] if len(shown) == 1 else [f"`{names[i]}`" for i in shown]),
        "",
    ]
    rows = []
    for field in fields(entries[0]):
        values = [f"`{getattr(entries[i], field.name)}`" for i in shown]
        rows.append([f"`{field.name}`", *values, told.get(field.name, "")])
    return _table(header, rows) if rows else "None."


def descriptions(cls: type) -> dict[str, str]:
    """The meaning of each field, from the ``Attributes`` of the class and those it inherits."""
    known = {f.name for f in fields(cls)}
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, text = (base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        text = re.sub(r"^ {12,}", "", inspect.cleandoc("\n" + text), flags=re.M)
        flat = re.sub(r"\n {4,}", " ", text)
        start = re.compile(r"(?:^|(?<=\. ))((?:\w+, )*\w+): ", re.M)
        marks = [m for m in start.finditer(flat) if set(m[1].split(", ")) <= known]
        ends = [m.start() for m in marks[1:]] + [len(flat)]
        for here, end in zip(marks, ends, strict=bool(marks)):
            meaning = flat[here.end() : end]
            for name in here[1].split(", "):
                told[name] = " ".join(meaning.split()).rstrip(".").replace("``", "`")
    return told


def picture(name: str) -> str:
    """The toy study's picture, by ``docs/tools/toy_pictures.py``."""
    title = registry()[name].title
    return (
        f"![{title} on eight Gaussians: samples in 1, 2 and 4 steps, and the error of the learned "
        f"jump](../images/toy/{name}.png)\n\n"
        "Eight Gaussians, 2,500 training steps, one seed ([the study](../studies/toy.md)). Left: "
        "1,000 samples each. Right: RMS error of the learned jump of length d."
    )


def published_numbers(methods: Sequence[str]) -> str:
    """The papers' numbers for these methods, from ``reports/content/published.csv``."""
    from fewstep.analysis.conditions import UNKNOWN
    from fewstep.reports.content.published import WORDS, published
    from fewstep.reports.content.published_notes import check_mark, notes
    from fewstep.reports.content.row_groups import published_value

    found = [row for row in published() if row.method in methods]
    if not found:
        return "None in `reports/content/published.csv`."
    steps = sorted({step for row in found for step in row.values})
    rows = []
    for row in found:
        values = [
            f"{published_value(row, s)} {check_mark(row)}".rstrip() if s in row.values else ""
            for s in steps
        ]
        network = "" if row.network == UNKNOWN else row.network
        name = f"{row.metric}-{row.samples // 1000}k"
        kind = WORDS.get(row.conditional, row.conditional)
        conditions = f"{kind}; guidance {row.guidance}; reference {row.reference}"
        rows.append([row.data, network, conditions, name, *values, row.where])
    heads = ["data", "network", "conditions", "metric"]
    heads += [*(f"{s} step{'s' * (s > 1)}" for s in steps), "source"]
    return "\n\n".join(filter(None, [_table(heads, rows), " ".join(notes(found, steps))]))


def pictures() -> str:
    """All pictures, each a link to its page."""
    parts = []
    for page, meta in sources().items():
        name = meta["objectives"][0]
        title = registry()[name].title
        parts.append(
            f"**[{title}]({page}.md)**\n\n[![{title}](../images/toy/{name}.png)]({page}.md)"
        )
    return "\n\n".join(parts)


def overview() -> str:
    """The table of all pages."""
    rows = []
    for page, meta in sources().items():
        one = registry()[meta["objectives"][0]]
        rows.append(
            [
                f"[{one.title}]({page}.md)",
                _path(one),
                RANGES[one.jump_range],
                cost(one),
                "yes" if one.needs_teacher else "",
            ]
        )
    return _table(["objective", "path", "one step goes", "training cost", "teacher"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *escaped]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
