"""What each run of a sweep asks a machine for: defaults, and rules by its axes and settings.

Resources are no part of a run's key: the same run may be done anywhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from fewstep.errors import UserError, check_choice, check_range, counted, located
from fewstep.experiments.cost.devices import CPU, DEVICES
from fewstep.experiments.cost.devices import NAMES as DEVICE_NAMES
from fewstep.setting_types import checked
from fewstep.sweeps.definition.conditions import AxisValues, Condition, read_condition

if TYPE_CHECKING:
    from fewstep.experiments.config.run_config import RunConfig


@dataclass(frozen=True)
class Resources:
    """What one run asks for.

    Attributes:
        nodes: machines it runs on. The other numbers are per machine.
        gpus, cpus: whole numbers, or a share below 1 of one that several runs divide (Ray).
        memory_gb: of main memory, in 10^9 bytes; None for the launcher's default.
        hours: the time limit; None for the launcher's default.
        device: the model of the GPUs (h100, ...), or cpu; None for what this machine has. It asks
            for nothing: ``--plan`` estimates by it.
    """

    nodes: int = 1
    gpus: float = 0
    cpus: float = 1
    memory_gb: float | None = None
    hours: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            check_choice("resources.device", self.device, DEVICE_NAMES)
            if self.device == CPU and self.gpus:
                raise UserError(f"resources.device is cpu, but resources.gpus={self.gpus:g}")
        for name, value in vars(self).items():
            if value is None or name == "device":
                continue
            low, above = (1, False) if name == "nodes" else (0, name != "gpus")
            check_range(f"resources.{name}", value, low, open_low=above)
            if name in ("gpus", "cpus") and value > 1 and value != int(value):
                raise UserError(
                    f"resources.{name} must be a whole number, or a share below 1, got {value!r}"
                )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *others: str) -> Self:
        """Checked ``values`` of a user; ``others``: what else an unknown name could have been."""
        return cls(**checked(cls, "resources.", values, "resource", others=others))

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
        parts = [counted(self.nodes, "node")] if self.nodes > 1 else []
        model = DEVICES[self.device].title if self.device in DEVICES else ""
        parts += [counted(self.gpus, f"{model} GPU".strip())] if self.gpus else []
        parts += [counted(self.cpus, "CPU")]
        parts += [f"{self.memory_gb:g} GB"] if self.memory_gb is not None else []
        parts += [f"{self.hours:g} h"] if self.hours is not None else []
        return ", ".join(parts)


DEFAULT = Resources()
NAMES = tuple(vars(DEFAULT))
MISSING = object()


@dataclass(frozen=True)
class Request:
    """Defaults, ordered rules, and overrides of the command line; ``given``: whether any is."""

    defaults: Resources = DEFAULT
    rules: tuple[tuple[Condition, Mapping[str, Any]], ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False

    def of(self, values: AxisValues, config: "RunConfig") -> Resources:
        """What a run asks for; ``values``: of its axes."""
        request = asdict(self.defaults)
        for condition, changed in self.rules:
            if condition.holds(_with_settings(condition, values, config)):
                request.update(changed)
        return Resources(**{**request, **self.overrides})

    @property
    def several(self) -> bool:
        """Whether some run may get several processes."""
        changes: list[Mapping[str, Any]] = [{}, *(changed for _, changed in self.rules)]
        base = asdict(self.defaults)
        return any(Resources(**{**base, **c, **self.overrides}).processes > 1 for c in changes)

    def override(self, name: str, value: Any) -> Self:
        """With ``name`` (``cpus``, ...) set for all runs."""
        Resources.parse({name: value})  # refuses a bad name or value
        return replace(self, overrides={**self.overrides, name: value}, given=True)


NO_REQUEST = Request()


def read_resources(spec: Any, known: AxisValues) -> Request:
    """The field ``resources``, checked; ``known``: values of the sweep's axes."""
    if spec is None:
        return NO_REQUEST
    from fewstep.experiments.config.hydra_schema import GROUPS  # all that can be trained: slow
    from fewstep.experiments.config.run_config import setting_names

    if not isinstance(spec, dict):
        raise UserError(f"resources must be a mapping of {', '.join(NAMES)}, rules; got {spec!r}")
    listed = spec.get("rules") or []
    if not isinstance(listed, list):
        raise UserError(f"resources.rules must be a list of mappings with when:, got {listed!r}")
    settings = set(setting_names()) - set(GROUPS)  # these may have any value, groups a known name
    named = {g: [*known.get(g, ()), *registry.names()] for g, registry in GROUPS.items()}
    defaults = Resources.parse({k: v for k, v in spec.items() if k != "rules"}, "rules")
    rules = []
    for i, rule in enumerate(listed, start=1):
        where = f"resources, rule {i}"
        if not isinstance(rule, dict) or "when" not in rule or len(rule) < 2:
            raise UserError(f"{where} must have when: and what it asks for, got {rule!r}")
        condition = read_condition(f"{where}, when", rule["when"], {**known, **named}, settings)
        changed = {k: v for k, v in rule.items() if k != "when"}
        with located(where):
            Resources.parse(changed, "when")
        rules.append((condition, changed))
    return Request(defaults, tuple(rules), given=True)


def _with_settings(condition: Condition, known: AxisValues, config: "RunConfig") -> AxisValues:
    """``known`` values and the settings that ``condition`` names, as far as the run has them."""
    values = {name: list(given) for name, given in known.items()}
    for name, _ in condition.terms:
        value: Any = config.values
        for part in name.split("."):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        if isinstance(value, dict):  # a group goes by its name
            value = value["name"]
        if value is not MISSING:
            values.setdefault(name, []).append(value)
    return values
