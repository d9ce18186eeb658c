"""The average velocity over a jump on the linear path, which MeanFlow and shortcut models learn.

F(x_t, t, d) = 1/d int_{t-d}^t v dtau,    F(x_t, t, 0) = v
x_{t-d} = x_t - d F(x_t, t, d)                       a jump of length d toward data
F(x_t, t, d) = (s1 + s2) / 2                         two halves make a whole:
    s1 = F(x_t, t, d/2),  x' = x_t - d/2 s1,  s2 = F(x', t - d/2, d/2)
"""

from typing import ClassVar

import torch
from torch import Tensor

from fewstep.objectives.core.base import Net, Objective, Progress
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.gaussian import GaussianFlow


class AverageVelocity(Objective):
    """What objectives share whose network is F(x_t, t, d)."""

    uses_jump: ClassVar[bool] = True
    jump_range: ClassVar = "any"

    def network_d(self, d: Tensor) -> Tensor:
        """The jump length as the network is given it."""
        return d

    def clipped(self, x: Tensor) -> Tensor:
        """The middle of a jump, or a target, within bounds if there are any."""
        return x

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        d = t - u
        return x_t - expand(d, x_t) * net(x_t, t, self.network_d(d), y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return net(x_t, t, self.network_d(torch.zeros_like(t)), y)

    def half_jump(self, F: Net, x: Tensor, t: Tensor, half: Tensor, y: Tensor | None) -> Tensor:
        """F(x, t, d/2)."""
        return F(x, t, self.network_d(half), y)

    @torch.no_grad()
    def two_halves(self, F: Net, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None) -> Tensor:
        """(s1 + s2) / 2, the average velocity of two jumps of length d/2."""
        half = d / 2
        s1 = self.half_jump(F, x_t, t, half, y)
        s2 = self.half_jump(F, self.clipped(x_t - expand(half, x_t) * s1), t - half, half, y)
        return self.clipped((s1 + s2) / 2)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            assert d is not None
            is_flow = d == self.network_d(torch.zeros_like(d))
            return flow.average_velocity(x, t, torch.where(is_flow, torch.zeros_like(d), d))

        return F
