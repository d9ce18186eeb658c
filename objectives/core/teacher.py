"""A teacher's velocity on the student's path, whatever path the teacher was trained on."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives.core.base import Net, Objective
from fewstep.objectives.core.paths import ProbabilityPath, convert_path


@dataclass(frozen=True)
class Teacher:
    """E[dx_t/dt | x_t] on ``path`` from ``net``, trained by ``objective``; called like a Net.

    The teacher is called at the same x and eps on its own path (``convert_path``). Its velocity
    there gives E[x | x_t] and E[eps | x_t], which no scaling changes, and these the velocity here.
    No division by something small: the two coefficients are never 0 together.
    """

    objective: Objective
    net: Net
    path: ProbabilityPath

    def __post_init__(self) -> None:
        if not self.objective.can_teach:
            raise UserError(f"{self.objective.title} learns no velocity, so it cannot be a teacher")

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if d is not None:
            raise ValueError("a teacher gives velocities, not jumps: d must be None")
        source = self.objective.path
        if source == self.path:
            return self.objective.velocity(self.net, x, t, y)
        x_s, s = convert_path(x, t, self.path, source)
        v = self.objective.velocity(self.net, x_s, s, y)
        data, noise = source.data_and_noise(x_s, v, s)
        return self.path.velocity(data, noise, t)
