"""AYF, Align Your Flow: flow maps of a teacher (Sabour, Fidler & Kreis 2025, arXiv:2506.14603).

    X = x_t - d F(x_t, t, d),  d = t - s
    EMD, Eulerian:    grad f sign(t - s) dX^-/dt,                     dX/dt = v - F - d dF/dt
    LMD, Lagrangian:  grad f sign(s - t) (dX^-/ds - v(X^-, s)),       dX/ds = F + d dF/dd
    dF/dt = JVP(F; (v, 1, 1) in (x_t, t, d)),   v: the teacher's velocity          (theorem 3.2)

Both are, of F, steps against g, which is 0 where X is the teacher's flow map:

    g = F - v(x_t, t) + r d dF/dt       EMD         r warms up from 0 to 0.99; below 1 it keeps F
    g = F - v(X, s)   + r d dF/dd       LMD         near the straight line            (eq. 4, 5)
    L = |F - sg(F - g / (|g| + c))|^2 / D

    logit d ~ N(-0.8, 1);   s ~ U(0, 1 - d);   t = s + d

The paper could be read second-hand only. Two equations, r and c are quoted from it; times, the
weight 1 / d on f (so that F is what is regressed) and a warm-up of 10,000 steps are those of a
third party's implementation that cites algorithm 1 and appendix F.1 (tec-works/FlowWithMe). Another
one (torch-flowmodels) has the same two numbers for t and s, the larger and the smaller of two
draws. With its weight EMD without warm-up and normalisation has the gradient of MeanFlow, as their
appendix says. For LMD r and c are not known: both have the same here. They draw the guidance from
U(1, 3) and tell the student, and finish with adversarial training.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_fields, check_range
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, rand, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.core.teachers_flow import TeachersFlow
from fewstep.objectives.core.times import logit_normal


@dataclass(frozen=True)
class MapDistillation(AverageVelocity):
    """What AYF's two objectives share."""

    length_mean: float = -0.8
    length_std: float = 1.0
    tangent_warmup: int = 10_000
    tangent_share: float = 0.99
    tangent_norm: float | None = 0.1

    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "length_std tangent_norm", 0, open_low=True)
        check_range("objective.tangent_warmup", self.tangent_warmup, 0)
        check_range("objective.tangent_share", self.tangent_share, 0, 1)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x = batch.x
        t, d = self.times(x, g)
        eps = randn(x, g)
        x_t = self.path.mix(x, eps, t)

        F, gap = self.gap(nets, batch, x_t, eps, t, d, self.share(progress))
        size = gap.flatten(1).norm(dim=1)
        if self.tangent_norm is not None:
            gap = gap / expand(size + self.tangent_norm, x)
        error = mean_square(F - F.detach() + gap)
        return Loss(error, t, {"tangent_norm": size.mean()}, d)

    def times(self, x: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """(t, d), each (B,)."""
        d = logit_normal(x, g, self.length_mean, self.length_std)
        return d + (1 - d) * rand(x, g), d

    def share(self, progress: Progress) -> float:
        """r, of the derivative in g."""
        warmup = min(self.tangent_warmup, progress.total // 2)
        return min(self.tangent_share, progress.step / warmup if warmup else 1.0)

    @abstractmethod
    def gap(
        self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor, d: Tensor, r: float
    ) -> tuple[Tensor, Tensor]:
        """F(x_t, t, d), and g without gradient."""

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        return super().gaussian_optimum(flow, progress) if self.share(progress) == 1 else None

    def step_cost(self) -> float | None:
        return 4 / 3


@OBJECTIVES.register("ayf_emd")
@dataclass(frozen=True)
class AYFEMD(TeachersFlow, MapDistillation):
    """Jumps whose ends stay where they are while their beginnings move with the teacher's flow.

    Attributes:
        length_mean, length_std: mean and standard deviation of the logit of d.
        tangent_warmup: steps over which r grows, but at most half of the training.
        tangent_share: the largest r; 1 has the teacher's flow map as its minimum.
        tangent_norm: c of the normalisation; null for none.
        teacher_guidance: guidance scale of the teacher; 1 for none.
        autoguidance: a, beside the weak teacher (``weak_teacher=RUN``); 1 for none.
    """

    title: ClassVar[str] = "AYF-EMD"

    def gap(
        self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor, d: Tensor, r: float
    ) -> tuple[Tensor, Tensor]:
        net, y, one = nets.online, batch.y, torch.ones_like(t)
        v = self.drift(nets, batch, x_t, eps, t)
        F, dF = jvp(net, lambda x, t, d: net(x, t, d, y), (x_t, t, d), (v, one, one))
        return F, F.detach() - v + r * expand(d, x_t) * dF


@OBJECTIVES.register("ayf_lmd")
@dataclass(frozen=True)
class AYFLMD(TeachersFlow, MapDistillation):
    """Jumps whose ends move with the teacher's flow; settings as ``AYFEMD``'s.

    Attributes:
        length_mean, length_std: mean and standard deviation of the logit of d.
        tangent_warmup: steps over which r grows, but at most half of the training.
        tangent_share: the largest r; 1 has the teacher's flow map as its minimum.
        tangent_norm: c of the normalisation; null for none.
        teacher_guidance: guidance scale of the teacher; 1 for none.
        autoguidance: a, beside the weak teacher (``weak_teacher=RUN``); 1 for none.
    """

    title: ClassVar[str] = "AYF-LMD"

    def gap(
        self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor, d: Tensor, r: float
    ) -> tuple[Tensor, Tensor]:
        net, y, length = nets.online, batch.y, expand(d, x_t)
        F, dF = jvp(net, lambda d: net(x_t, t, d, y), (d,), (torch.ones_like(d),))
        end = x_t - length * F.detach()
        v = self.teachers_velocity(nets, end, t - d, y)
        return F, F.detach() - v + r * length * dF
