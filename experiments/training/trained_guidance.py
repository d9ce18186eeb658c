"""What guidance a network has learned in training, for the table that it will stand in."""

from dataclasses import fields

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.training.teacher import teacher_directory
from fewstep.objectives import Objective

WORDS = ("guidance", "mixing", "cfg")  # in the names of an objective's settings of guidance


def trained_guidance(config: RunConfig) -> str | None:
    """The settings of the guidance that the network learns, its teacher's included; "" for none.

    None where it is unknown: the teacher is of an earlier version, which did not record it.
    """
    own = settings_of(config.objective)
    if (teacher := teacher_directory(config)) is None:
        return own
    taught: str | None = (teacher.result() or {}).get("trained_guidance")
    if taught is None:
        return None
    return "; ".join(text for text in (own, taught and f"teacher: {taught}") if text)


def settings_of(objective: Objective) -> str:
    """As ``guidance=0.2, mixing=0.92, guidance_interval=0-0.75``; "" where it trains none in."""
    named = [f.name for f in fields(objective) if any(word in f.name for word in WORDS)]  # type: ignore[arg-type]
    values = {name: getattr(objective, name) for name in named}
    if values.get("autoguidance") == 1:  # it is an alternative to the other
        del values["autoguidance"]
    scales = [v for k, v in values.items() if k.endswith("guidance") and isinstance(v, int | float)]
    if not objective.uses_guidance and all(scale == 1 for scale in scales):
        return ""
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)
