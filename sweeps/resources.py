"""What each run of a sweep asks a machine for: defaults, and rules by its axes and settings.

::

    resources:
      cpus: 4
      gpus: 1
      rules:                            # a later one wins
        - when: {backbone: dit_b_2}     # values of axes, or any settings of the run
          gpus: 4
          hours: 24

Resources are no part of a run's key: the same run may be done anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError, check_range, unknown
from fewstep.sweeps.conditions import Condition, Facts, read_condition

if TYPE_CHECKING:
    from fewstep.experiments.config import RunConfig


@dataclass(frozen=True)
class Resources:
    """What one run asks for.

    Attributes:
        nodes: machines it runs on. The rest is asked of each of them.
        gpus, cpus: whole numbers, or a share below 1 of one that several runs divide (Ray).
        memory_gb: of main memory, in 10^9 bytes; None for the launcher's default.
        hours: the time limit; None for the launcher's default.
    """

    nodes: int = 1
    gpus: float = 0
    cpus: float = 1
    memory_gb: float | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            name = f"resources.{f.name}"
            if value is None and f.default is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UserError(f"{name} must be a number, got {value!r}")
            check_range(name, value, 1 if f.name == "nodes" else 0, open_low=f.name in POSITIVE)
            if f.name in COUNTS and value != int(value) and (f.name == "nodes" or value > 1):
                share = "" if f.name == "nodes" else ", or a share below 1"
                raise UserError(f"{name} must be a whole number{share}, got {value!r}")

    @property
    def processes_per_node(self) -> int:
        """Of a run, on each of its nodes: one per GPU, one at least."""
        return max(1, int(self.gpus))

    @property
    def processes(self) -> int:
        """Of a run, on all its nodes."""
        return self.nodes * self.processes_per_node

    def __str__(self) -> str:
        """As in ``2 nodes, 4 GPUs, 8 CPUs, 16 GB, 24 h``."""
        told = [_count(self.nodes, "node")] if self.nodes > 1 else []
        told += [_count(self.gpus, "GPU")] if self.gpus else []
        told += [_count(self.cpus, "CPU")]
        told += [f"{self.memory_gb:g} GB"] if self.memory_gb is not None else []
        told += [f"{self.hours:g} h"] if self.hours is not None else []
        return ", ".join(told)


COUNTS = ("nodes", "gpus", "cpus")
POSITIVE = ("cpus", "memory_gb", "hours")
DEFAULT = Resources()
FIELDS = tuple(f.name for f in fields(Resources))
MISSING = object()


@dataclass(frozen=True)
class Request:
    """The ``resources:`` of a sweep: defaults, rules in their order, and the command line's word.

    ``given`` is whether there is any of it.
    """

    defaults: Resources = DEFAULT
    rules: tuple[tuple[Condition, Mapping[str, Any]], ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False

    def of(self, facts: Facts, config: RunConfig) -> Resources:
        """What a run asks for; ``facts``: of its axes."""
        asked = asdict(self.defaults)
        for condition, changed in self.rules:
            if condition.holds(_with_settings(condition, facts, config)):
                asked.update(changed)
        return Resources(**{**asked, **self.overrides})

    @property
    def several(self) -> bool:
        """Whether some run may get several processes."""
        changes: list[Mapping[str, Any]] = [{}, *(changed for _, changed in self.rules)]
        base = asdict(self.defaults)
        return any(Resources(**{**base, **c, **self.overrides}).processes > 1 for c in changes)

    def override(self, name: str, value: Any) -> Request:
        """With ``name`` (``cpus``, ...) set for all runs."""
        if name not in FIELDS:
            raise unknown("resource", f"resources.{name}", [f"resources.{f}" for f in FIELDS])
        replace(self.defaults, **{name: value})  # refuses a bad value
        return replace(self, overrides={**self.overrides, name: value}, given=True)


NO_REQUEST = Request()


def read_resources(source: str, spec: Any, known: Facts) -> Request:
    """The field ``resources`` of the sweep file ``source``; ``known``: values of its axes.

    Raises:
        UserError: an unknown field, a bad value, or a rule about what no run has.
    """
    if spec is None:
        return NO_REQUEST
    from fewstep.experiments.composition import GROUPS  # all that can be trained: slow
    from fewstep.experiments.config import setting_names

    where = f"sweep {source}: resources"
    if not isinstance(spec, dict):
        raise UserError(f"{where} must be a mapping of {', '.join(FIELDS)}, rules; got {spec!r}")
    listed = spec.get("rules") or []
    if not isinstance(listed, list):
        raise UserError(f"{where}.rules must be a list of mappings with when:, got {listed!r}")
    settings = set(setting_names()) - set(GROUPS)  # these may have any value, groups a known name
    named = {g: [*known.get(g, ()), *registry.names()] for g, registry in GROUPS.items()}
    defaults = _asked(where, {k: v for k, v in spec.items() if k != "rules"}, "rules")
    rules = []
    for i, rule in enumerate(listed, start=1):
        here = f"{where}, rule {i}"
        if not isinstance(rule, dict) or "when" not in rule or len(rule) < 2:
            raise UserError(f"{here} must have when: and what it asks for, got {rule!r}")
        condition = read_condition(f"{here}, when", rule["when"], {**known, **named}, settings)
        rules.append((condition, _asked(here, {k: v for k, v in rule.items() if k != "when"},
                                        "when")))  # fmt: skip
    return Request(Resources(**defaults), tuple(rules), given=True)


def _asked(where: str, asked: dict[str, Any], beside: str) -> dict[str, Any]:
    for name in asked:
        if name not in FIELDS:
            raise unknown(f"field of {where.removeprefix('sweep ')}", name, (*FIELDS, beside))
    try:
        Resources(**asked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return asked


def _with_settings(condition: Condition, facts: Facts, config: RunConfig) -> Facts:
    """``facts`` and the settings that ``condition`` asks for, as far as the run has them."""
    found = {name: list(values) for name, values in facts.items()}
    for name, _ in condition.terms:
        value: Any = config.values
        for part in name.split("."):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        if isinstance(value, dict):  # a group goes by its name
            value = value["name"]
        if value is not MISSING:
            found.setdefault(name, []).append(value)
    return found


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"
