"""Reflow, the second rectified flow (Liu, Gong & Liu 2023, algorithm 1): two stages, stored pairs.

    eps ~ N(0, I),  x = the teacher's flow from eps at t = 1 to t = 0      drawn once, stored
    x_t = (1 - t) x + t eps
    L   = E |F(x_t, t) - (eps - x)|^2,  t ~ U(0, 1)

The pairs do not cross as independent ones do, so the flow is nearly straight and few Euler steps
follow it. Their t is our 1 - t. ``pair_steps`` Euler steps by default; Frans et al. 2024 take 128.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, rand
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import guided
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.samplers import check_solver, integrate


@OBJECTIVES.register("reflow")
@dataclass(frozen=True)
class Reflow(Objective):
    """Flow matching on pairs of noise and what a teacher's flow makes of it.

    Attributes:
        pairs: how many are drawn.
        pair_steps, pair_solver: how the teacher's flow is followed.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    pairs: int = 50_000
    pair_steps: int = 128
    pair_solver: str = "euler"
    teacher_guidance: float = 1.0

    title: ClassVar[str] = "Reflow"
    needs_teacher: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True
    jump_range: ClassVar = "any"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "pairs pair_steps", 1)
        check_solver("objective.pair_solver", self.pair_solver)
        check_range("objective.teacher_guidance", self.teacher_guidance, 0)

    @torch.no_grad()
    def make_pairs(self, teacher: Net, eps: Tensor, y: Tensor | None) -> Tensor:
        guided_net = guided(teacher, self.teacher_guidance, y)
        times = self.path.times(self.pair_steps)
        return integrate(lambda x, t: guided_net(x, t, y=y), eps, times, self.pair_solver)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, eps = batch.x, batch.y, batch.eps
        if eps is None:
            raise UserError(
                "objective reflow trains on stored pairs: pass Batch(x, eps=...), the noise that "
                "make_pairs(teacher, eps, y) made x from"
            )
        t = rand(x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return x_t - expand(t - u, x_t) * net(x_t, t, y=y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return net(x_t, t, y=y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        return straight(self, flow)

    def step_cost(self) -> float:
        return 1.0


def straight(objective: Objective, flow: GaussianFlow) -> Net:
    """The velocity of straight lines between Gaussian noise and the data ``make_pairs`` gives it.

    The flow only stretches, so x = k eps, and x_t = ((1 - t) k + t) eps moves at (1 - k) eps.
    """

    def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        one = torch.ones(1, 1, dtype=x.dtype, device=x.device)
        k = objective.make_pairs(lambda x, t, d=None, y=None: flow.velocity(x, t), one, None)
        return x * expand((1 - k[0]) / ((1 - t) * k[0] + t), x)

    return F
