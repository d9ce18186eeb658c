"""The defaults of version 0.2, which sweeps begun with it keep: they find their runs again.

sweep.json says of later ones which defaults they have (``DEFAULTS``).
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fewstep.objectives import OBJECTIVES
from fewstep.registry import class_default

DEFAULTS = 2
"""Number of the defaults of this version; a sweep.json without a number has those of 0.2."""
TRAINING = {"training.clip": 1.0}


def earlier_defaults(settings: Sequence[tuple[str, Any]], objective: str) -> list[tuple[str, Any]]:
    """What a sweep of version 0.2 means where ``settings``, the last of a kind, say nothing.

    ``objective``: the default one.
    """
    name = next((value for key, value in reversed(settings) if key == "objective"), objective)
    found = list(TRAINING.items())
    if name in OBJECTIVES:
        entry = OBJECTIVES[name]
        for f in fields(entry):  # type: ignore[arg-type]
            if f.metadata.get("omit_default") and getattr(entry, f.name) != class_default(f):
                found.append((f"objective.{f.name}", class_default(f)))
    return found
