"""Settings assigned to what Hydra has composed: checked, converted, and quickly."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewstep.backbones import BACKBONES
from fewstep.errors import UserError, listed, nearest
from fewstep.experiments.config.averages import decays
from fewstep.experiments.data import DATA
from fewstep.objectives import OBJECTIVES
from fewstep.registry import Registry

INTERPOLATION = "${"
ONE_OR_SEVERAL = ("evaluation.extractor", "training.ema")
GROUPS: dict[str, Registry[Any]] = {"objective": OBJECTIVES, "backbone": BACKBONES, "data": DATA}


def plain_values(config: DictConfig) -> dict[str, Any]:
    """All values, plain; ``UserError`` for a missing one, or an interpolation to nowhere."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:  # an interpolation to nowhere, or "???"
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def assign(config: DictConfig, key: str, value: Any, known: Sequence[str]) -> None:
    """Set ``key``; ``UserError`` unless it is ``known`` and ``value`` has its type."""
    if key.split(".")[0] in GROUPS and (key in GROUPS or key.endswith(".name")):
        group = key.split(".")[0]
        raise UserError(f"{key} cannot be set to {value!r} here; choose it with {group}=NAME")
    if key not in known:
        inside = [k for k in known if k.startswith(key.rsplit(".", 1)[0] + ".")]
        hint = _elsewhere(config, key) or nearest(key, [*known, *GROUPS])
        name = key.rstrip("_")  # as it was written: run_config.field_key
        raise UserError(f"unknown setting {name!r}{hint}{listed(inside or known, hint)}")
    is_list = OmegaConf.is_list(OmegaConf.select(config, key)) and key not in ONE_OR_SEVERAL
    if is_list and not isinstance(value, list | tuple):
        raise UserError(f"{key} takes a list, written [a,b], got {value!r}")
    if key == "evaluation.times" and value and not any(isinstance(v, list | tuple) for v in value):
        value = [value]  # one schedule, written without the brackets of the list of them
    if key == "training.ema":  # of one kind, however it is written: it is part of the run's key
        value = values[0] if len(values := decays(value)) == 1 else values
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        got = "" if str(value) in line else f", got {value!r}"
        raise UserError(f"{key}: {line}{got}") from None


def _elsewhere(config: DictConfig, key: str) -> str:
    """Which other entries of its group have the setting ``key``, for the middle of a message."""
    group, _, setting = key.partition(".")
    if group not in GROUPS:
        return ""
    registry = GROUPS[group]
    having = [n for n in registry.names() if setting in {f.name for f in fields(registry[n])}]
    others = ", ".join(having)
    return f": {config[group].name} has none, it is a setting of {others}" if having else ""


def flat_keys(config: DictConfig) -> list[str]:
    """The dotted names of all settings."""
    keys: list[str] = []
    for name in map(str, config):
        node = config._get_node(name)  # deeper ones are values
        inside = map(str, node) if isinstance(node, DictConfig) else None
        keys += [name] if inside is None else [f"{name}.{inner}" for inner in inside]
    return keys


@dataclass(frozen=True, eq=False)
class Composed:
    """What Hydra makes of one choice of groups, and settings assigned to it."""

    config: DictConfig
    converted: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def known(self) -> list[str]:
        return flat_keys(self.config)

    @cached_property
    def scratch(self) -> DictConfig:
        return copy.deepcopy(self.config)

    @cached_property
    def plain(self) -> dict[str, Any] | None:
        """All values, unless some are to be looked up in the environment, anew each time."""
        raw = OmegaConf.to_container(self.config)
        return None if INTERPOLATION in repr(raw) else plain_values(self.config)

    def values_with(self, assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """All values, plain, with those of ``assignments``; raises as ``assign``.

        A DictConfig is slow to copy, and a sweep assigns the same few settings thousands of times:
        so each is checked and converted once. An interpolation needs the others beside it.
        """
        if any(mark in repr(value) for _, value in assignments for mark in (INTERPOLATION, "???")):
            config = copy.deepcopy(self.config)
            for key, value in assignments:
                assign(config, key, value, self.known)
            return plain_values(config)
        values = plain_values(self.config) if self.plain is None else copy.deepcopy(self.plain)
        for key, value in assignments:
            new = copy.deepcopy(self._convert(key, value))
            group, _, name = key.rpartition(".")
            (values[group] if group else values)[name] = new
        return values

    def _convert(self, key: str, value: Any) -> Any:
        cache_key = (key, repr(value))  # 1, 1.0 and True are equal, and not the same to a string
        if cache_key not in self.converted:
            assign(self.scratch, key, value, self.known)
            new = OmegaConf.select(self.scratch, key)
            new = OmegaConf.to_container(new) if OmegaConf.is_config(new) else new
            self.converted[cache_key] = new
            OmegaConf.update(self.scratch, key, OmegaConf.select(self.config, key), merge=False)
        return self.converted[cache_key]
