"""Names for things: one registry per kind, open to other packages through entry points.

An entry is a frozen dataclass *instance*: its fields are the settings and their defaults, so the
schema of a name's configuration is the dataclass itself and cannot drift from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fewstep.errors import UserError, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type)
log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Names of one ``kind``, filled by ``add``/``register`` and by the entry points of ``group``.

    An entry point ``mine = my_package.my_module:MyObjective`` names a frozen dataclass (or an
    instance of one). Entry points are loaded at the first look-up; one that cannot be imported
    is reported and passed over, so that a broken plug-in does not break the rest.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._loaded = False
        self._left_out: dict[str, str] = {}

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
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            if name in self._left_out:
                raise UserError(f"{self.kind} {name!r} cannot be loaded: {self._left_out[name]}")
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

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
                self.add(point.name, loaded() if isinstance(loaded, type) else loaded)
            except Exception as error:  # a third party's fault must not stop everyone else
                self._left_out[point.name] = f"{type(error).__name__}: {error}"
                log.warning("entry point %s of %s left out: %s", point.name, self.group, error)
