"""From overrides to a checked ``RunConfig``, and from that to a run's key.

Hydra composes the groups (objective, backbone, data) and parses the overrides. The schema of each
group's options is made from the registered dataclasses, so a name in a registry, a third party's
included, is an option with typed, checked fields and needs no file of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fewstep.backbones import BACKBONES, Backbone
from fewstep.errors import UserError, check_choice, nearest, unknown
from fewstep.experiments.composition import GROUPS, Composed, assign, flat_keys, values_of
from fewstep.experiments.data import DATA, DataSource
from fewstep.experiments.extractors import EXTRACTORS
from fewstep.experiments.metrics import METRICS
from fewstep.experiments.rundir import find_run
from fewstep.experiments.settings import Evaluation, Tracking, Training, named
from fewstep.objectives import OBJECTIVES, Objective, sampling_fields
from fewstep.registry import Registry

KEY_LENGTH = 12
NAME_BYTES = 200  # of the 255 that a file name may have: others are made of it
# where files are and who is told: nothing that could change a number
NOT_IN_KEY = ("runs", "sweep", "tracking", "evaluation")


@dataclass
class Root:
    """The settings at the top level; the groups are added by name."""

    objective: Any = None
    backbone: Any = None
    data: Any = None
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    teacher: str | None = None
    seed: int = 0
    runs: str = "runs"
    sweep: str = "train"


@dataclass(frozen=True)
class RunConfig:
    """The whole resolved configuration of one run. ``values`` is what spec.json keeps."""

    values: dict[str, Any]

    def __post_init__(self) -> None:
        for group, registry in GROUPS.items():
            build(registry, self.values[group])
        _ = self.training, self.evaluation, sweep_name(self.values["sweep"])
        for extractor in self.evaluation.extractors:
            if extractor != "auto":
                build_named(EXTRACTORS, "evaluation.extractor", extractor, extra=("auto",))
        for metric in self.evaluation.metrics:
            build_named(METRICS, "evaluation.metrics", metric)
        for sampler in self.evaluation.samplers:
            with_sampler(self.objective, sampler)

    @cached_property
    def objective(self) -> Objective:
        return build(OBJECTIVES, self.values["objective"])

    @cached_property
    def backbone(self) -> Backbone:
        return build(BACKBONES, self.values["backbone"])

    @cached_property
    def data(self) -> DataSource:
        return build(DATA, self.values["data"])

    @cached_property
    def training(self) -> Training:
        return Training(**self.values["training"])

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(**self.values["evaluation"])

    @property
    def seed(self) -> int:
        return int(self.values["seed"])

    @cached_property
    def key(self) -> str:
        """The run's identity: a hash of every setting that can change its result."""
        values = copy.deepcopy(self.values)
        for name in NOT_IN_KEY:
            values.pop(name, None)
        for f in fields(Training):
            if f.metadata.get("bookkeeping"):
                values["training"].pop(f.name, None)
        for f in fields(type(self.objective)):  # type: ignore[arg-type]
            if f.metadata.get("sampling"):
                values["objective"].pop(f.name, None)
        values["data"].pop("root", None)
        for f in fields(type(self.data)):  # type: ignore[arg-type]
            if f.metadata.get("bookkeeping"):
                values["data"].pop(f.name, None)
        if values.get("teacher") is None:
            values.pop("teacher", None)
        else:  # a run's directory is named by its key
            values["teacher"] = Path(values["teacher"]).name
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def sweep_name(value: Any) -> str:
    """``value`` as the name of a folder under the run root.

    Raises:
        UserError: a name that could lead elsewhere, or hide, or that is taken, or too long.
    """
    name = str(value)
    if name == "mlartifacts" or name.startswith("mlflow.db"):  # beside the sweeps
        raise UserError(f"a sweep cannot be called {name!r}: MLflow keeps its files there")
    if not name[:1].isalnum() or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(
            f"a sweep's name may hold letters, digits, '-', '_' and '.', and begins with "
            f"a letter or digit, got {name!r}"
        )
    if (length := len(name.encode())) > NAME_BYTES:
        raise UserError(
            f"a sweep's name may have {NAME_BYTES} bytes, got {length}: '{name[:20]}...'"
        )
    return name


def build(registry: Registry[Any], values: dict[str, Any]) -> Any:
    """The registered entry ``values["name"]`` with its fields set to the rest of ``values``.

    Raises:
        UserError: an unknown name or field, or a value the entry's own checks refuse.
    """
    entry = registry[values["name"]]
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name != "name"
    }
    try:
        return replace(entry, **settings)
    except TypeError:
        known = [f.name for f in fields(entry)]
        extra = sorted(set(settings) - set(known))
        raise UserError(
            f"{registry.kind} {values['name']!r} has no setting "
            f"{', '.join(extra)}{nearest(extra[0], known)} "
            f"(choices: {', '.join(known) or 'none'})"
        ) from None


def build_named(
    registry: Registry[Any], setting: str, value: Any, extra: Sequence[str] = ()
) -> Any:
    """The entry that ``value``, a name or ``{name: ..., setting: value}``, asks for.

    ``extra``: what else ``setting`` could have been.

    Raises:
        UserError: no such entry or setting, or a bad value.
    """
    told = named(setting, value)
    if told["name"] not in registry:
        check_choice(setting, told["name"], [*extra, *registry.names()])
    return build(registry, told)


def with_sampler(objective: Objective, sampler: Mapping[str, Any]) -> Objective:
    """``objective`` with these settings of its sampler.

    Raises:
        UserError: settings it does not have, or that are not its sampler's alone.
    """
    known = sampling_fields(objective)
    for name in sampler:
        if name not in known:
            raise unknown(f"setting of {objective.title}'s sampler", name, known)
    try:
        return replace(objective, **sampler)  # type: ignore[type-var]
    except TypeError as error:
        raise UserError(f"evaluation.samplers: {dict(sampler)}: {error}") from None


Override = str | tuple[str, Any]
"""``"a.b=1"`` in Hydra's grammar, or the pair ``("a.b", 1)``."""


def compose(overrides: Iterable[Override]) -> RunConfig:
    """The configuration that ``overrides`` make of the defaults; the last of a kind wins.

    Raises:
        UserError: an unknown key or option (with the nearest one), a wrong type, a bad value.
    """
    choices: dict[str, str] = {}
    assignments: list[tuple[str, Any]] = []
    for override in overrides:
        key, value = pair(override)
        if key not in GROUPS:
            assignments.append((key, value))
        elif isinstance(value, str):
            choices[key] = value
        else:
            raise UserError(f"{key} takes the name of one {GROUPS[key].kind}, got {value!r}")
    chosen = {**_defaults(), **choices}
    if "backbone" not in choices:
        chosen["backbone"] = DATA[chosen["data"]].suggested_backbone
    for group, registry in GROUPS.items():
        _ = registry[chosen[group]]  # an unknown name is told here, in our words
    values = _composed(tuple(sorted(chosen.items()))).values_with(assignments)
    if values["teacher"] is not None:
        values["teacher"] = _teacher(str(values["teacher"]), Path(values["runs"]))
    return RunConfig(values)


@cache
def _defaults() -> dict[str, str]:
    """The groups' default choices, from conf/run.yaml."""
    text = (files("fewstep.experiments.conf") / "run.yaml").read_text(encoding="utf-8")
    listed = [entry for entry in OmegaConf.create(text).defaults if isinstance(entry, DictConfig)]
    return {str(k): str(v) for entry in listed for k, v in entry.items()}


def _teacher(teacher: str, root: Path) -> str:
    """What a user names a teacher by, as an absolute run directory.

    A path that ends in a key need not hold a run yet: a sweep names its runs before it makes them.

    Raises:
        UserError: neither a run, nor a place where one will be.
    """
    path = Path(teacher)
    is_key = re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", path.name)
    if is_key and "/" in teacher and not (path / "spec.json").exists():
        return str(path.absolute())
    try:
        found = find_run(teacher, root)
        spec = found.spec() or {}
    except UserError as error:
        raise UserError(f"teacher: {error}") from None
    if spec.get("key") != found.key:  # the student's key has the folder's name in it
        raise UserError(
            f"teacher: {found.path} holds run {spec.get('key')}; call the folder by that key"
        )
    return str(found.path)


def amend(config: RunConfig, overrides: Iterable[Override]) -> RunConfig:
    """``config`` with other settings that leave its key as it is: cells, sampler, paths.

    Raises:
        UserError: an override that would make it another run.
    """
    chosen = tuple(sorted((group, config.values[group]["name"]) for group in GROUPS))
    amended = OmegaConf.merge(copy.deepcopy(_composed(chosen).config), config.values)
    assert isinstance(amended, DictConfig)
    for override in overrides:
        key, value = pair(override)
        before = _resolved(amended).key
        assign(amended, key, value, flat_keys(amended))
        if _resolved(amended).key != before:
            raise UserError(
                f"{key}={value} would make another run of {config.key}: train that one instead "
                f"(what may change here: evaluation.*, and what only the sampler reads: "
                f"{', '.join(f'objective.{f}' for f in sampling_fields(config.objective)) or '-'})"
            )
    return _resolved(amended)


def _resolved(config: DictConfig) -> RunConfig:
    return RunConfig(values_of(config))


def pair(override: Override) -> tuple[str, Any]:
    """An override as (key, value), whichever way it was written."""
    return parse(override) if isinstance(override, str) else override


def parse(override: str) -> tuple[str, Any]:
    """``"a.b=1"`` -> ``("a.b", 1)``, in Hydra's grammar.

    Raises:
        UserError: not of the form key=value, or several values where one is meant.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        key, equals, value = override.partition("=")
        if key and equals:
            raise UserError(
                f"override {override!r}: {value!r} is no value in Hydra's grammar; a text with "
                f"other than plain characters is written in quotes, as key='\"a text\"' in a shell"
            ) from None
        raise UserError(f"override {override!r} is not of the form key=value") from None
    if parsed.type != OverrideType.CHANGE or parsed.package:
        raise UserError(f"override {override!r}: write key=value, without '+', '~' or '@'")
    if parsed.is_sweep_override():
        raise UserError(
            f"override {override!r} gives several values where one is meant; "
            f"a list is written [a,b], and axes of values belong in a sweep's YAML"
        )
    if not parsed.key_or_group:
        raise UserError(f"override {override!r} is not of the form key=value")
    return parsed.key_or_group, parsed.value()


def setting_names() -> list[str]:
    """The dotted names of all settings that a run can have, whatever its groups."""
    names = ["seed", "teacher"]
    for group, kind in (("training", Training), ("evaluation", Evaluation)):
        names += [f"{group}.{f.name}" for f in fields(kind)]
    for group, registry in GROUPS.items():
        found = {f.name for name in registry.names() for f in fields(registry[name]) if f.init}
        names += [group, *(f"{group}.{name}" for name in sorted(found))]
    return names


@cache
def _composed(chosen: Sequence[tuple[str, str]]) -> Composed:
    """Hydra's composition for one choice of groups; tens of milliseconds, hence the cache."""
    _store_schemas(chosen)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("fewstep.experiments.conf", version_base="1.3"):
        return Composed(hydra.compose("run", [f"{group}={name}" for group, name in chosen]))


def _store_schemas(chosen: Sequence[tuple[str, str]]) -> None:
    """Tell Hydra of the entries in use; one may have been registered a moment ago."""
    store = ConfigStore.instance()
    store.store(name="root", node=Root)
    for group, name in chosen:
        store.store(group=group, name=name, node=_schema(name, GROUPS[group][name]))


def _schema(name: str, entry: Any) -> Any:
    """An OmegaConf schema from a registered dataclass instance, with its name in front."""
    hints = get_type_hints(type(entry))
    made: list[tuple[str, Any, Any]] = [("name", str, field(default=name))]
    for f in fields(entry):
        value: Any = getattr(entry, f.name)
        if f.name == "root":  # where data lies is the machine's business
            value = "${oc.env:FEWSTEP_DATA," + str(value) + "}"
        if isinstance(value, list | tuple):
            made.append((f.name, hints[f.name], field(default_factory=partial(list, value))))
        elif f.init:
            made.append((f.name, hints[f.name], field(default=value)))
    return make_dataclass(f"{type(entry).__name__}Schema", made)
