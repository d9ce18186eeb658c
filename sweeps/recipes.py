"""How runs differ from the recipe of a paper (docs/recipes.md)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fewstep.errors import UserError, counted
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.training.teacher import WEAK, config_of, teacher_directory
from fewstep.sweeps.definition import parse
from fewstep.sweeps.definition.member import Member, teacher_key
from fewstep.sweeps.definition.recipe import Recipe
from fewstep.sweeps.definition.sweep import Sweep

GROUPS = ("objective", "backbone", "data", "training", "evaluation")
NO_PROTOCOL = ("data.root", "evaluation.batch_size")
"""Settings that say where data are, or how much is done at a time."""
PLACES = ("weights", "path", "autoencoder")
"""Settings of an extractor that say where its weights are."""
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """A setting whose value is not that of the paper; ``source``: where the paper's is printed."""

    setting: str
    run: Any
    paper: Any
    source: str


@dataclass(frozen=True)
class Comparison:
    """A run beside the member of ``recipe`` that it was compared with.

    ``same_objective``: False where the recipe has none of the run's objective.
    """

    recipe: Recipe
    member: Member
    same_objective: bool
    differences: tuple[Difference, ...]


def recipe_sweep(name: str) -> tuple[Sweep, Recipe]:
    """A recipe by its name, with or without ``papers/``, or by the path of its file.

    Raises ``UserError``: no such sweep, or one that is no recipe.
    """
    short = f"{parse.PAPERS}/{name}"
    sweep = parse.load(short if short in parse.recipes() else name)
    if not isinstance(sweep.recipe, Recipe):
        raise UserError(f"sweep {name} is no recipe (choices: {', '.join(parse.recipes())})")
    return sweep, sweep.recipe


def recipes() -> list[tuple[Sweep, Recipe]]:
    """The recipes that come with fewstep."""
    return [recipe_sweep(name) for name in parse.recipes()]


def compare(config: RunConfig, recipe: str, label: str | None = None) -> Comparison:
    """``config`` beside the nearest member of a recipe; ``label``: its choice on axis objective.

    Raises ``UserError``: no such recipe.
    """
    sweep, found = recipe_sweep(recipe)
    return _compare(config, {}, found, _plain(sweep).members(), label)


def closest(config: RunConfig) -> str:
    """The recipe with the run's objective that differs least, its data first of all.

    Raises ``UserError``: no recipe has that objective.
    """
    found: list[tuple[bool, int, str]] = []
    objective = config.values["objective"]["name"]
    for sweep, recipe in recipes():
        if objective not in _objectives(sweep):
            continue
        beside = compare(config, recipe.name)
        others = beside.member.config.which_data() != config.which_data()
        found.append((others, len(beside.differences), recipe.name))
    if not found:
        names = ", ".join(parse.recipes())
        raise UserError(f"no recipe has the objective {objective}; name one ({names})")
    return min(found)[-1]


def _objectives(sweep: Sweep) -> set[Any]:
    choices = [choice for axis in sweep.axes.values() for choice in axis.choices]
    given = [*sweep.base, *(setting for choice in choices for setting in choice.settings)]
    return {value for key, value in given if key == "objective"}


def made_from(plan: Json | None, sweep: str) -> str | None:
    """The recipe that sweep.json tells, or the one that has the sweep's name."""
    recorded = ((plan or {}).get("recipe") or {}).get("name")
    named = f"{parse.PAPERS}/{sweep}"
    return recorded or (named if named in parse.recipes() else None)


def recipe_record(sweep: Sweep) -> Json:
    """What sweep.json keeps of the recipe that the sweep is, or was made from.

    Its evaluation may change later, and is told by captions: it does not count here.
    """
    if isinstance(sweep.recipe, Recipe):
        recipe, original = sweep.recipe, _plain(sweep)
    else:
        original, recipe = recipe_sweep(str(sweep.recipe))
        original = _plain(original)
    members, differing = original.members(), set[str]()
    own = {member.config.key: member.config for member in sweep.members()}
    for member in sweep.members():
        label = member.choices.get("objective")
        beside = _compare(member.config, own, recipe, members, label)
        differing |= {d.setting for d in beside.differences}
    settings = sorted(s for s in differing if not s.startswith("evaluation."))
    return {"name": recipe.name, "settings": settings, "description": _sentence(recipe, settings)}


def _sentence(recipe: Recipe, settings: Sequence[str]) -> str:
    kinds = (
        (len(recipe.unknown), "setting", "whose published value is unknown"),
        (len(recipe.differs), "thing", "that fewstep cannot do"),
    )
    notes = [f"{counted(n, noun)} {which}" for n, noun, which in kinds if n]
    lists = f", which lists {' and '.join(notes)}" if notes else ""
    if not settings:
        return f"As published (recipe {recipe.name}{lists})"
    verb = "setting differs" if len(settings) == 1 else "settings differ"
    return f"{len(settings)} {verb} from recipe {recipe.name} ({', '.join(settings)}){lists}"


def _plain(sweep: Sweep) -> Sweep:
    """Without what the command line says."""
    seeds = (sweep.file_seeds or sweep.seeds)[:1]
    return replace(sweep, overrides=(), chosen={}, seeds=seeds, file_seeds=())


def _compare(
    config: RunConfig,
    others: Mapping[str, RunConfig],
    recipe: Recipe,
    members: Sequence[Member],
    label: str | None,
) -> Comparison:
    known = {member.config.key: member for member in members}
    name = config.values["objective"]["name"]
    same = [m for m in members if m.config.values["objective"]["name"] == name]
    labelled = [m for m in same if label is not None and m.choices.get("objective") == label]
    beside = [
        Comparison(recipe, m, bool(same), tuple(_differences(config, others, recipe, m, known)))
        for m in labelled or same or members
    ]
    return min(beside, key=lambda comparison: len(comparison.differences))


def _differences(
    config: RunConfig,
    others: Mapping[str, RunConfig],
    recipe: Recipe,
    member: Member,
    members: Mapping[str, Member],
) -> list[Difference]:
    """Those of the run, then those of its teacher that are not the same ones again."""
    known = {key: one.config for key, one in members.items()}
    own, paper = settings(config, others), settings(member.config, known)
    method = member.choices.get("objective", "")
    same = own["objective"] == paper["objective"]
    found = [
        Difference(s, own.get(s, ABSENT), paper.get(s, ABSENT), recipe.source(s, method))
        for s in dict.fromkeys([*paper, *own])
        if (same or not s.startswith("objective."))  # of another, they mean something else
        and own.get(s, ABSENT) != paper.get(s, ABSENT)
    ]
    teacher, published = _teacher(config, others), members.get(member.teacher or "")
    if teacher is None or published is None:
        return found
    told = {(d.setting, str(d.run), str(d.paper)) for d in found}
    return found + [
        replace(d, setting=f"teacher.{d.setting}")
        for d in _differences(teacher, others, recipe, published, members)
        if d.setting != "objective"  # the row "teacher" tells it
        and not d.setting.startswith("evaluation")
        and (d.setting, str(d.run), str(d.paper)) not in told
    ]


def settings(config: RunConfig, known: Mapping[str, RunConfig] = {}) -> dict[str, Any]:
    """Every setting that belongs to a protocol, by its dotted name; ``teacher``: its objective.

    ``known``: runs, by key, that may be the teacher and do not exist.
    """
    found: dict[str, Any] = {}
    for group in GROUPS:
        if group in ("objective", "backbone", "data"):
            found[group] = config.values[group]["name"]
        for name, value in _values(getattr(config, group)):
            if name == "extractor":
                value = _without_places(value)
            if f"{group}.{name}" not in NO_PROTOCOL:
                found[f"{group}.{name}"] = value
    if teacher_key(config.values) is not None:
        teacher = _teacher(config, known)
        found["teacher"] = (
            "a run that is lost" if teacher is None else str(teacher.values["objective"]["name"])
        )
    weak = teacher_directory(config, WEAK)
    if weak is not None and weak.spec() is not None:
        found[WEAK] = str(config_of(weak).values["objective"]["name"])
    return found


def _without_places(extractor: Any) -> Any:
    """``evaluation.extractor`` without the paths of weights: recipes cannot know them."""
    if isinstance(extractor, list):
        return [_without_places(one) for one in extractor]
    if not isinstance(extractor, Mapping):
        return extractor
    kept = {k: _without_places(v) for k, v in extractor.items() if k not in PLACES}
    return kept["name"] if list(kept) == ["name"] else kept


def _values(built: Any) -> Iterator[tuple[str, Any]]:
    for f in fields(built):
        if f.init and not f.metadata.get("bookkeeping"):
            value = getattr(built, f.name)
            yield f.name, list(value) if isinstance(value, tuple) else value


def _teacher(config: RunConfig, known: Mapping[str, RunConfig]) -> RunConfig | None:
    if (key := teacher_key(config.values) or "") in known:
        return known[key]
    directory = teacher_directory(config)
    return None if directory is None or directory.spec() is None else config_of(directory)
