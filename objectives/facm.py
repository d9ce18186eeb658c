"""FACM, flow-anchored consistency models (Peng et al. 2025, arXiv:2507.03738).

    F(x_t, t, 0) = v                                       the anchor: flow matching
    f(x_t, t) = x_t - t F(x_t, t, 1)                       the jump to data
    g = F - (v - t dF/dt),  dF/dt = JVP(F; (v, 1) in (x_t, t))     0 where f is constant on the flow
    L = a e / sg(e + c)^p  +  |F(x_t, t, 0) - v|^2 / D + 1 - cos(F(x_t, t, 0), v)
        e = |F - sg(F - b clamp(g, -1, 1))|^2 / D,   a = sin(pi t / 2),   b = 1 - (1 - t)^q
    t = 2/pi atan(e^tau),  tau ~ N(P_mean, P_std^2);   v = eps - x, or a teacher's velocity

As in the authors' code (github.com/ali-vilab/FACM, losses.py), whose time is our 1 - t: both losses
at the same x_t; the cosine is taken over channels. Their network is told the two apart by the
embedded end of the jump, or by a time 2 - t; ours by a flag in d. They train guidance in.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import cosine_distance, expand, mean_square, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.core.teachers_flow import TeachersFlow
from fewstep.objectives.core.times import normal


@OBJECTIVES.register("facm")
@dataclass(frozen=True)
class FACM(Objective):
    """A consistency model, and a flow that keeps it from drifting.

    Attributes:
        p_mean, p_std: mean and standard deviation of tau, the log of the noise level.
        relaxation: q, how late along t the whole tangent is taken.
        p, c: power and offset of the consistency loss's adaptive weight.
        cosine: weight of the flow's direction beside its squared error.
    """

    p_mean: float = -0.8
    p_std: float = 1.6
    relaxation: float = 0.5
    p: float = 0.5
    c: float = 1e-3
    cosine: float = 1.0

    title: ClassVar[str] = "FACM"
    uses_jump: ClassVar[bool] = True
    jump_is_flag: ClassVar[bool] = True
    jump_range: ClassVar = "to_data"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "p_std c relaxation", 0, open_low=True)
        check_fields("objective", self, "p cosine", 0)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, net = batch.x, batch.y, nets.online
        t = normal(x, g, self.p_mean, self.p_std).exp().atan() * (2 / math.pi)
        eps = randn(x, g)
        x_t = self.path.mix(x, eps, t)
        v = self.drift(nets, batch, x_t, eps, t)
        flag, one = torch.zeros_like(t), torch.ones_like(t)

        F_flow = net(x_t, t, flag, y)
        flow = mean_square(F_flow - v) + self.cosine * cosine_distance(F_flow, v)

        F, dF = jvp(net, lambda x, t: net(x, t, one, y), (x_t, t), (v, one))
        tangent = F.detach() - (v - expand(t, x) * dF)
        part = expand(1 - (1 - t) ** self.relaxation, x)
        error = mean_square(F - F.detach() + part * tangent.clamp(-1, 1))
        weight = (t * (math.pi / 2)).sin() / (error.detach() + self.c) ** self.p
        size = tangent.flatten(1).norm(dim=1).mean()
        logs = {"loss_flow": flow.detach().mean(), "tangent_norm": size}
        return Loss(weight * error + flow, t, logs, one)

    def drift(self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt along which f is to be constant."""
        return self.path.velocity(batch.x, eps, t)

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return x_t - expand(t, x_t) * net(x_t, t, torch.ones_like(t), y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return net(x_t, t, torch.zeros_like(t), y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            assert d is not None
            return flow.average_velocity(x, t, torch.where(d > 0, t, d))

        return F

    def step_cost(self) -> float:
        return 7 / 3


@OBJECTIVES.register("facm_distillation")
@dataclass(frozen=True)
class FACMDistillation(TeachersFlow, FACM):
    """FACM along a teacher's flow, which is how the paper trains its best models.

    Attributes:
        teacher_guidance: guidance scale of the teacher; 1 for none.
        autoguidance: of the teacher, beside a weaker one (``weak_teacher=RUN``); 1 for none.
    """

    title: ClassVar[str] = "FACM distillation"
