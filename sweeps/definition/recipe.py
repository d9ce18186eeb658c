"""The field ``recipe`` of a sweep file: whose protocol it is, and where each setting is printed.

A mapping says that the sweep *is* the recipe of a paper; a name, that it was made from that recipe.
docs/recipes.md has the fields.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError, check_choice
from fewstep.setting_types import check_type

FIELDS = ("paper", "published", "sources", "unknown", "differs")
UNKNOWN, DEFAULT = "unknown", "default"


@dataclass(frozen=True)
class Published:
    """A row of numbers that the paper reports.

    ``method``: the label of a member; ``values``: by number of steps, as printed.
    """

    method: str
    metric: str
    values: Mapping[str, float]
    source: str
    conditions: str = ""


@dataclass(frozen=True)
class Recipe:
    """What a paper did, beside the settings of the sweep.

    Attributes:
        name: as ``fewstep sweep NAME`` takes it.
        sources: where the value of a setting is printed: by SETTING, or METHOD/SETTING for one.
        unknown: likewise, what was taken where the published value is not known.
        differs: what fewstep cannot express, a sentence each.
    """

    name: str
    paper: str = ""
    published: tuple[Published, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def source(self, setting: str, method: str) -> str:
        """Where the value of ``setting`` comes from; ``method``: the label of the member."""
        for key in (f"{method}/{setting}", setting):
            if key in self.unknown:
                return f"{UNKNOWN}: {self.unknown[key]}"
            if key in self.sources:
                return self.sources[key]
        return DEFAULT


def read_recipe(
    spec: Any, name: str, settings: Iterable[str], methods: Iterable[str]
) -> Recipe | str | None:
    """The field ``recipe``, checked: a recipe, the name of one, or None.

    ``settings``: all that the sweep sets, in base and axes; a recipe has a source for each.
    ``methods``: the labels of the axis objective.
    """
    if spec is None or isinstance(spec, str):
        return spec
    if not isinstance(spec, dict):
        raise UserError(
            f"recipe must be the name of one, or a mapping of {', '.join(FIELDS)}; got {spec!r}"
        )
    for key in spec:
        check_choice("field of recipe", key, FIELDS)
    if not spec.get("paper"):
        raise UserError("recipe needs paper: what it is the protocol of")
    texts = dict[str, str]
    recipe = Recipe(
        name,
        check_type("recipe.paper", spec["paper"], str),
        tuple(map(_published, check_type("recipe.published", spec.get("published") or [], list))),
        check_type("recipe.sources", spec.get("sources") or {}, texts),
        check_type("recipe.unknown", spec.get("unknown") or {}, texts),
        tuple(check_type("recipe.differs", spec.get("differs") or [], list[str])),
    )
    keys, needed, methods = [*recipe.sources, *recipe.unknown], set(settings), list(methods)
    told = {key.rpartition("/")[2] for key in keys}
    if lacking := sorted(needed - told):
        listed = f"no source of {', '.join(lacking)}"
        raise UserError(f"recipe.sources has {listed} (what is not known: recipe.unknown)")
    if twice := sorted({*recipe.sources} & {*recipe.unknown}):
        raise UserError(f"recipe: {', '.join(twice)} has a source and is listed unknown")
    if idle := sorted(told - needed):
        raise UserError(f"recipe: the sweep does not set {', '.join(idle)}")
    for key in keys:
        if method := key.rpartition("/")[0]:
            check_choice(f"method in recipe, {key}", method, methods)
    for row in recipe.published:
        check_choice("method in recipe.published", row.method, methods)
    return recipe


def _published(row: Any) -> Published:
    fields = ("method", "metric", "values", "source", "conditions")
    if not isinstance(row, dict):
        raise UserError(f"recipe.published must be a list of mappings, got {row!r}")
    for key in row:
        check_choice("field of recipe.published", key, fields)
    if lacking := [key for key in fields[:-1] if not row.get(key)]:
        raise UserError(f"recipe.published: a row has no {', '.join(lacking)}")
    values = {str(k): v for k, v in row["values"].items()}
    return Published(
        str(row["method"]),
        str(row["metric"]),
        check_type("recipe.published.values", values, dict[str, float]),
        str(row["source"]),
        str(row.get("conditions", "")),
    )
