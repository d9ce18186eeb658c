"""stub until the axes' branch is merged"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    nodes: int = 1
    gpus: float = 0
    cpus: float = 1
    memory_gb: float | None = None
    hours: float | None = None
