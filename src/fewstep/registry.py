"""Names for things: one registry per kind, open to other packages through entry points.

An entry is a frozen dataclass *instance*: its fields are the settings and their defaults, so the
schema of a name's configuration is the dataclass itself and cannot drift from it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fewstep.errors import UserError, unknown
from fewstep.setting_types import checked

T = TypeVar("T")
C = TypeVar("C", bound=type)
ADDED = {"omit_default": True}  # metadata of a field that is ``added``
log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class Registry(Generic[T]):
    """Names of one ``kind``, filled by ``add``/``register`` and by the entry points of ``group``.

    An entry point ``mine = my_package.my_module:MyObjective`` names a frozen dataclass (or an
    instance of one). Entry points are loaded at the first look-up; one that cannot be imported
    is reported and passed over, so that a broken plug-in does not break the rest.
    """

    kind: str
    group: str
    reserved: Sequence[str] = ()  # names that no entry point may have
    methods: Sequence[str] = ()  # that it must have
    not_loaded: dict[str, str] = field(default_factory=dict, init=False)  # why, by its name
    _entries: dict[str, T] = field(default_factory=dict, init=False)
    _loaded: bool = field(default=False, init=False)

    def add(self, name: str, entry: T) -> None:
        """Register ``entry`` under ``name``; raises ``ValueError`` on a name already taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: register the class' default instance under ``name``."""

        def decorate(cls: C) -> C:
            self.add(name, cls())
            return cls

        return decorate

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise self.lookup_error(name, self.kind, self._entries)
        return self._entries[name]

    def lookup_error(self, name: str, what: str, choices: Iterable[str]) -> UserError:
        """Why there is no entry ``name``; ``what``: how to call an unknown name."""
        self._load()
        if name in self.not_loaded:
            return UserError(f"{self.kind} {name!r} cannot be loaded: {self.not_loaded[name]}")
        return unknown(what, name, choices)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=self.group):
            try:
                loaded: Any = point.load()
                entry = loaded() if isinstance(loaded, type) else loaded
                self._check(point.name, entry)
                self.add(point.name, entry)
            except Exception as error:  # a third party's fault must not stop everyone else
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self.not_loaded[point.name] = reason
                log.warning(
                    "entry point %s of %s was not loaded: %s", point.name, self.group, reason
                )

    def _check(self, name: str, entry: Any) -> None:
        if name in self.reserved:
            raise ValueError(f"the name {name!r} is reserved")
        if not is_dataclass(entry):
            raise TypeError(f"{type(entry).__name__} is not a dataclass")
        if lacking := [m for m in self.methods if not callable(getattr(entry, m, None))]:
            raise TypeError(f"{type(entry).__name__} has no method {', '.join(lacking)}")


def bookkeeping(default: Any) -> Any:
    """A setting that cannot change a result: it is no part of a run's key."""
    return field(default=default, metadata={"bookkeeping": True})


def added(default: Any) -> Any:
    """A setting that came after runs had been made without it.

    At its ``default`` it is no part of a run's key, so those runs keep theirs. The default must
    give what there was before; what new runs begin with is the registered entry's.
    """
    return field(default=default, metadata=ADDED)


def class_default(setting: Field[Any]) -> Any:
    """The value that its class gives a field that was ``added``; a registered entry may differ."""
    factory = setting.default_factory
    return setting.default if factory is MISSING else factory()


def build(registry: Registry[Any], values: dict[str, Any]) -> Any:
    """The registered entry ``values["name"]`` with its fields set to the rest; else a UserError."""
    entry, kind = registry[values["name"]], f"{registry.kind} {values['name']!r}"
    given = {name: value for name, value in values.items() if name != "name"}
    if extra := sorted(set(given) - {f.name for f in fields(entry)}):
        raise unknown(f"setting of {kind}", extra[0], [f.name for f in fields(entry)])
    for f in fields(entry):  # a run that was made before a setting came has what there was then
        if f.metadata.get("omit_default") and f.name not in given:
            given[f.name] = class_default(f)
    return replace(
        entry, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )


def build_named(
    registry: Registry[Any], setting: str, value: Any, extra: Sequence[str] = ()
) -> Any:
    """The entry of ``value``, a name or ``{name: ..., setting: value}``, each of its type.

    ``extra``: what else ``setting`` could have been, where it is unknown: a UserError.
    """
    given = named(setting, value)
    name = given.pop("name")
    if name not in registry:
        raise registry.lookup_error(name, setting, [*extra, *registry.names()])
    entry = registry[name]
    return replace(entry, **checked(type(entry), f"{name}.", given, f"setting of {name}"))


def normalised(registry: Registry[Any], setting: str, value: Any) -> Any:
    """A value for ``build_named`` in the one spelling that a run key is made of; else a UserError.

    Settings at their defaults are left out, and a name without settings stands alone.
    """
    name, entry = named(setting, value)["name"], build_named(registry, setting, value)
    own = {f.name: getattr(entry, f.name) for f in fields(entry) if f.init}
    changed = {k: v for k, v in own.items() if v != getattr(registry[name], k)}
    return {"name": name, **changed} if changed else name


def named(setting: str, value: Any) -> dict[str, Any]:
    """``"pca"`` or ``{name: pca, dimension: 32}`` as the latter; else a UserError."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return {str(key): inner for key, inner in value.items()}
    raise UserError(f"{setting} takes a name or {{name: NAME, setting: value}}, got {value!r}")
