"""From overrides to a checked ``RunConfig``, and from that to a run's key.

Hydra composes the groups (objective, backbone, data) and parses the overrides. Each registered
dataclass, a third party's included, is an option of its group with typed, checked fields.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache, cached_property, partial
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer

from fewstep.backbones import BACKBONES, Backbone
from fewstep.errors import UserError, check_choice
from fewstep.experiments.config import hydra_schema
from fewstep.experiments.config.hydra_schema import GROUPS, Composed, plain_values
from fewstep.experiments.config.settings import Evaluation, Tracking, Training
from fewstep.experiments.config.together import check_together
from fewstep.experiments.data import DATA, DataSource
from fewstep.experiments.extractors import EXTRACTORS
from fewstep.experiments.metrics import METRICS
from fewstep.experiments.optimisers import OPTIMISERS, Optimiser
from fewstep.experiments.store.run_directory import TEACHERS, find_run
from fewstep.objectives import OBJECTIVES, Objective, sampling_fields
from fewstep.objectives.core.amed import Amed
from fewstep.objectives.core.samplers import LEARNED
from fewstep.registry import build, build_named, class_default, normalised
from fewstep.setting_types import checked

KEY_LENGTH = 12
NAME_BYTES = 200  # of the 255 that a file name may have: others are made of it
HOST_STATE = (ConfigStore, GlobalHydra, HydraConfig, JobRuntime, VersionBase)
# paths, records and evaluation: nothing that could change the training
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
    weak_teacher: str | None = None
    seed: int = 0
    runs: str = "runs"
    sweep: str = "train"


@dataclass(frozen=True)
class RunConfig:
    """The whole resolved configuration of one run. ``values`` is what spec.json keeps."""

    values: dict[str, Any]

    def __post_init__(self) -> None:
        _ = self.objective, self.backbone, self.data, self.training
        sweep_name(self.values["sweep"])
        for extractor in self.evaluation.extractors:
            if extractor != "auto":
                build_named(EXTRACTORS, "evaluation.extractor", extractor, extra=("auto",))
        for metric in self.evaluation.metrics:
            build_named(METRICS, "evaluation.metrics", metric)
        for sampler in self.evaluation.samplers:
            with_sampler(self.objective, sampler)
        self.evaluation.weights_of(self.training)
        check_together(self)

    @cached_property
    def objective(self) -> Objective:
        return build(OBJECTIVES, self.values["objective"])

    @cached_property
    def backbone(self) -> Backbone:
        return build(BACKBONES, self.values["backbone"])

    @cached_property
    def data(self) -> DataSource:
        """Where ``root`` is not set, the data are in FEWSTEP_DATA, now, if that is."""
        source: DataSource = build(DATA, self.values["data"])
        named = getattr(source, "root", None)  # some have none: they need no files
        if named is not None and named == DATA[self.values["data"]["name"]].root:  # type: ignore
            root = os.environ.get("FEWSTEP_DATA") or named
            source = replace(source, root=root)  # type: ignore[type-var]
        return source

    def which_data(self) -> dict[str, Any]:
        """The settings that say which data, and not where they are; new ones of old runs, too."""
        source = self.data
        told = [f.name for f in fields(source) if not f.metadata.get("bookkeeping")]  # type: ignore[arg-type]
        settings = {name: getattr(source, name) for name in told if name != "root"}
        return {"name": self.values["data"]["name"], **settings}

    @cached_property
    def training(self) -> Training:
        training = Training(**self.values["training"])
        spelling = normalised(OPTIMISERS, "training.optimiser", training.optimiser)
        return replace(training, optimiser=spelling)

    @cached_property
    def optimiser(self) -> Optimiser:
        return build_named(OPTIMISERS, "training.optimiser", self.training.optimiser)

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(**self.values["evaluation"])

    @property
    def seed(self) -> int:
        return int(self.values["seed"])

    @cached_property
    def key(self) -> str:
        """The run's identity: a hash of every setting that can change its result."""
        values = {k: copy.deepcopy(v) for k, v in self.values.items() if k not in NOT_IN_KEY}
        for group in ("training", "objective", "data"):
            for f in fields(getattr(self, group)):
                if f.metadata.get("bookkeeping") or f.metadata.get("sampling"):
                    values[group].pop(f.name, None)
        values["data"].pop("root", None)
        if "optimiser" in values["training"]:
            values["training"]["optimiser"] = self.training.optimiser  # in one spelling
        for group in ("training", "objective", "data", "backbone"):
            built = getattr(self, group)
            for f in fields(built):
                if f.metadata.get("omit_default") and getattr(built, f.name) == class_default(f):
                    values[group].pop(f.name, None)
        for role in TEACHERS:
            if values.get(role) is None:
                values.pop(role, None)
            else:  # a run's directory is named by its key
                values[role] = Path(values[role]).name
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def sweep_name(value: Any) -> str:
    """``value`` as the name of a folder under the run root; ``UserError`` where it can be none."""
    name, length = str(value), len(str(value).encode())
    if name == "mlartifacts" or name.startswith("mlflow.db"):  # beside the sweeps
        raise UserError(f"a sweep cannot be called {name!r}: MLflow keeps its files there")
    if not name[:1].isalnum() or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(
            f"a sweep's name may hold letters, digits, '-', '_' and '.', and begins with "
            f"a letter or digit, got {name!r}"
        )
    if length > NAME_BYTES:
        brief = f"{name[:20]}..."
        raise UserError(f"a sweep's name may have {NAME_BYTES} bytes, got {length}: {brief!r}")
    return name


def learned_solver(objective: Objective, sampler: Mapping[str, Any]) -> Amed | None:
    """The settings of ``{solver: amed}``, which solves any learned flow; None of other samplers."""
    if sampler.get("solver") != LEARNED:
        return None
    if not objective.can_teach:
        raise UserError(
            f"evaluation.samplers: solver {LEARNED} follows the velocity of a flow, and "
            f"{objective.title} learns none"
        )
    settings = {name: value for name, value in sampler.items() if name != "solver"}
    what = f"setting of solver {LEARNED}"
    return Amed(**checked(Amed, "evaluation.samplers.", settings, what))


def with_sampler(objective: Objective, sampler: Mapping[str, Any]) -> Objective:
    """``objective`` with these settings of its sampler; ``UserError`` where it has no such."""
    if learned_solver(objective, sampler) is not None:
        return objective
    known, what = sampling_fields(objective), f"setting of {objective.title}'s sampler"
    for name in sampler:
        check_choice(what, name, known)
    return replace(objective, **checked(type(objective), "evaluation.samplers.", sampler, what))  # type: ignore[type-var]


Override = str | tuple[str, Any]
"""``"a.b=1"`` in Hydra's grammar, or the pair ``("a.b", 1)``."""


def compose(overrides: Iterable[Override]) -> RunConfig:
    """The configuration that ``overrides`` make of the defaults; the last of a kind wins.

    Raises ``UserError``: an unknown key or option (with the nearest one), a wrong type, a bad
    value.
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
        _ = registry[chosen[group]]  # raises our own error for an unknown name
    values = _composed(tuple(sorted(chosen.items()))).values_with(assignments)
    said = dict(assignments).get("data.root")
    if said is not None and said == getattr(DATA[chosen["data"]], "root", None):
        # said, though it is the default: then it counts, and not FEWSTEP_DATA
        values["data"]["root"] = os.path.join(".", values["data"]["root"])
    for role in TEACHERS:
        if values[role] is not None:
            values[role] = _teacher(role, str(values[role]), Path(values["runs"]))
    return RunConfig(values)


def default_name(group: str) -> str:
    """What a group is where nothing is said."""
    return _defaults()[group]


@cache
def _defaults() -> dict[str, str]:
    text = (files("fewstep.experiments.config") / "run.yaml").read_text(encoding="utf-8")
    listed = [entry for entry in OmegaConf.create(text).defaults if isinstance(entry, DictConfig)]
    return {str(k): str(v) for entry in listed for k, v in entry.items()}


def _teacher(role: str, teacher: str, root: Path) -> str:
    # a path that ends in a key need not hold a run yet: a sweep names its runs before it makes them
    path = Path(teacher)
    is_key = re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", path.name)
    if is_key and "/" in teacher and not (path / "spec.json").exists():
        return str(path.absolute())
    try:
        run = find_run(teacher, root)
        spec = run.spec() or {}
    except UserError as error:
        raise UserError(f"{role}: {error}") from None
    if spec.get("key") != run.key:  # the student's key has the folder's name in it
        raise UserError(
            f"{role}: {run.path} holds run {spec.get('key')}; call the folder by that key"
        )
    return str(run.path)


def amend(config: RunConfig, overrides: Iterable[Override]) -> RunConfig:
    """``config`` with other settings; ``UserError`` where they would change its key."""
    chosen = tuple(sorted((group, config.values[group]["name"]) for group in GROUPS))
    composed = copy.deepcopy(_composed(chosen).config)
    for group in GROUPS:  # what a run was made without, it has as it was then
        for f in fields(getattr(config, group)):
            if f.metadata.get("omit_default"):
                value = getattr(getattr(config, group), f.name)
                composed[group][f.name] = list(value) if isinstance(value, tuple) else value
    amended = OmegaConf.merge(composed, config.values)
    assert isinstance(amended, DictConfig)
    for override in overrides:
        key, value = pair(override)
        before = RunConfig(plain_values(amended)).key
        hydra_schema.assign(amended, key, value, hydra_schema.flat_keys(amended))
        if RunConfig(plain_values(amended)).key != before:
            raise UserError(
                f"{key}={value} would make another run of {config.key}: train that one instead "
                f"(what may change here: evaluation.*, and what only the sampler reads: "
                f"{', '.join(f'objective.{f}' for f in sampling_fields(config.objective)) or '-'})"
            )
    return RunConfig(plain_values(amended))


def pair(override: Override) -> tuple[str, Any]:
    """An override as (key, value), whichever way it was written."""
    return parse(override) if isinstance(override, str) else (field_key(override[0]), override[1])


def parse(override: str) -> tuple[str, Any]:
    """``"a.b=1"`` -> ``("a.b", 1)``, in Hydra's grammar; ``UserError`` for anything else."""
    key, value = copy.deepcopy(_parsed(override))
    return field_key(key), value


def field_key(key: str) -> str:
    """``data.is`` -> ``data.is_``: a word of Python's grammar cannot be the name of a field."""
    return f"{key}_" if iskeyword(key.rpartition(".")[2]) else key


@cache  # a program composes the same few many times
def _parsed(override: str) -> tuple[str, Any]:
    try:
        with _own_hydra():
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
    names = ["seed", *TEACHERS]
    for group, kind in (("training", Training), ("evaluation", Evaluation)):
        names += [f"{group}.{f.name}" for f in fields(kind)]
    for group, registry in GROUPS.items():
        own = {f.name for name in registry.names() for f in fields(registry[name]) if f.init}
        names += [group, *(f"{group}.{name}" for name in sorted(own))]
    return names


@cache
def _composed(chosen: Sequence[tuple[str, str]]) -> Composed:
    """What Hydra would compose of one choice of groups: ten times faster, once it has composed."""
    config = copy.deepcopy(_default_composition())
    for group, name in chosen:  # one may have been registered a moment ago
        config[group] = OmegaConf.structured(_schema(name, GROUPS[group][name]))
    return Composed(config)


@cache
def _default_composition() -> DictConfig:
    with _own_hydra() as store:
        store.store(name="root", node=Root)
        for group, name in _defaults().items():
            store.store(group=group, name=name, node=_schema(name, GROUPS[group][name]))
        with hydra.initialize_config_module("fewstep.experiments.config", version_base="1.3"):
            return hydra.compose("run")


@contextmanager
def _own_hydra() -> Iterator[ConfigStore]:
    # Hydra in its initial state; afterwards all its state (singletons and OmegaConf's resolvers) is
    # the host program's again. Only Hydra's plugins, which take long to find, are shared.
    Plugins.instance()
    known = ConfigStore.instance().repo
    instances, resolvers = Singleton._instances, BaseContainer._resolvers
    Singleton._instances = {k: v for k, v in instances.items() if k not in HOST_STATE}
    BaseContainer._resolvers = dict(resolvers)
    try:
        store = ConfigStore.instance()
        store.repo = {name: known[name] for name in ("hydra", "_dummy_empty_config_.yaml")}
        yield store
    finally:
        Singleton._instances, BaseContainer._resolvers = instances, resolvers


def _schema(name: str, entry: Any) -> Any:
    hints = get_type_hints(type(entry))
    schema: list[tuple[str, Any, Any]] = [("name", str, field(default=name))]
    for f in fields(entry):
        value: Any = getattr(entry, f.name)
        if isinstance(value, list | tuple):
            schema.append((f.name, hints[f.name], field(default_factory=partial(list, value))))
        elif f.init:
            schema.append((f.name, hints[f.name], field(default=value)))
    return make_dataclass(f"{type(entry).__name__}Schema", schema)
