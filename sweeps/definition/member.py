"""One run of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.experiments.store.json_files import Json
from fewstep.sweeps.definition.resources import DEFAULT, Resources

if TYPE_CHECKING:
    from fewstep.experiments.config.run_config import RunConfig  # imports torch


def teacher_key(config: Mapping[str, Any]) -> str | None:
    """The key of the run that the run of ``config`` learns from."""
    teacher = config.get("teacher")
    return None if teacher is None else Path(teacher).name


def label_of(choices: Mapping[str, str], seed: int) -> str:
    """As in ``objective=scm seed=0``."""
    return " ".join(f"{axis}={label}" for axis, label in {**choices, "seed": seed}.items())


@dataclass(frozen=True)
class Member:
    """One run of a sweep. ``choices``: a label by axis, of the axes that apply to it."""

    config: "RunConfig"
    choices: Mapping[str, str]
    seed: int
    title: str
    resources: Resources = DEFAULT

    @property
    def label(self) -> str:
        return label_of(self.choices, self.seed)

    @property
    def teacher(self) -> str | None:
        return teacher_key(self.config.values)

    def entry(self) -> Json:
        return {
            "key": self.config.key,
            "seed": self.seed,
            "title": self.title,
            "choices": dict(self.choices),
        }
