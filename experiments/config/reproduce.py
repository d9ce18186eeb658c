"""The command that makes a run again: its choices, and what differs from their defaults."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.experiments.config.hydra_schema import GROUPS
from fewstep.experiments.config.overrides import format_override
from fewstep.experiments.config.run_config import Override, RunConfig, compose
from fewstep.experiments.config.settings import Training
from fewstep.experiments.store.run_directory import TEACHERS


def command(config: RunConfig) -> str:
    """``fewstep train ...``, for a shell: trained again so, the run has the same key.

    A teacher is named by its key, which must be under the run root by then.
    """
    settings = [f"{key}={format_override(value)}" for key, value in overrides(config)]
    return shlex.join(["fewstep", "train", *settings])


def overrides(config: RunConfig) -> list[tuple[str, Any]]:
    """The fewest settings from which ``compose`` makes ``config``'s key."""
    chosen: list[Override] = [(group, config.values[group]["name"]) for group in GROUPS]
    default = compose(chosen).values
    book = {f"training.{f.name}" for f in fields(Training) if f.metadata.get("bookkeeping")}
    assignments = [pair for pair in chosen if isinstance(pair, tuple)]
    for part in (*GROUPS, "training"):
        assignments += [
            (f"{part}.{name}", value)
            for name, value in config.values[part].items()
            if value != default[part][name] and f"{part}.{name}" not in {"data.root", *book}
        ]
    for role in TEACHERS:
        if config.values.get(role) is not None:
            assignments.append((role, Path(config.values[role]).name))
    return [*assignments, ("seed", config.seed)]
