"""A teacher's velocity on the student's path, whatever path the teacher was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.objectives.base import Net, Objective
from fewstep.objectives.paths import Path, bridge


@dataclass(frozen=True)
class Teacher:
    """E[dx_t/dt | x_t] on ``path`` from ``net``, trained by ``objective``; called like a Net.

    The teacher is asked at the same x and eps on its own path (``bridge``). Its velocity there
    gives E[x | x_t] and E[eps | x_t], which no scaling changes, and these the velocity here. No
    division by something small: the two coefficients are never 0 together.
    """

    objective: Objective
    net: Net
    path: Path

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if d is not None:
            raise ValueError("a teacher gives velocities, not jumps: d must be None")
        source = self.objective.path
        if source == self.path:
            return self.objective.velocity(self.net, x, t, y)
        x_s, s = bridge(x, t, self.path, source)
        v = self.objective.velocity(self.net, x_s, s, y)
        data, noise = source.data_and_noise(x_s, v, s)
        return self.path.velocity(data, noise, t)
