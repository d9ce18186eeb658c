"""The registry of launchers. A launcher's name is also a section of a sweep file: its settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fewstep.deprecation import warn
from fewstep.errors import UserError
from fewstep.registry import Registry
from fewstep.setting_types import checked

T = TypeVar("T")

PARTS = ("name", "description", "base", "axes", "seeds", "exclude", "sample", "budget",
         "resources", "recipe")  # fmt: skip
"""The fields of a sweep file beside those of launchers."""

SETTINGS = ("objective", "backbone", "data", "training", "evaluation", "tracking", "teacher",
            "weak_teacher", "seed", "runs", "sweep")  # fmt: skip
"""What begins the name of a run's setting: on the command line ``training.steps=5`` is one."""

LAUNCHERS: Registry[Any] = Registry(
    "launcher",
    "fewstep.launchers",
    reserved=(*PARTS, *SETTINGS),
    methods=("check", "preview", "launch"),
)
"""Frozen dataclasses whose fields are settings; their methods: ``fewstep.sweeps.launcher``."""


def with_settings(entry: T, section: str, values: Mapping[str, Any]) -> T:
    """The launcher ``entry`` with the settings of its ``section``, checked.

    A launcher may have defaults that depend on the environment (``environment_defaults()``), and
    old names of settings (``with_new_names``).
    """
    given = with_new_names(entry, section, values)
    values = {**getattr(entry, "environment_defaults", dict)(), **given}
    settings = checked(type(entry), f"{section}.", values, f"setting of {section}")
    return replace(entry, **settings)  # type: ignore[type-var]


def with_new_names(
    entry: Any, section: str, values: Mapping[str, Any], *, silent: bool = False
) -> dict[str, Any]:
    """``values`` with ``entry.renamed`` names as the new ones; a UserError if both are there."""
    values = dict(values)
    for old, new in getattr(entry, "renamed", {}).items():
        if old not in values:
            continue
        if new in values:
            raise UserError(
                f"{section}.{old} is the old name of {section}.{new}: remove {section}.{old}"
            )
        if not silent:
            warn(f"{section}.{old}", f"{section}.{new}")
        values[new] = values.pop(old)
    return values
