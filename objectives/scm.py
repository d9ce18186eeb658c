"""sCM, continuous-time consistency models in TrigFlow (Lu & Song 2024, algorithm 1).

    x_t = cos(t) x + sin(t) z,  z ~ N(0, sigma_d^2)
    f(x_t, t) = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)                     (eq. 6)
    dx_t/dt = cos(t) z - sin(t) x               training from data, sCT
            = sigma_d F_teacher(x_t/sigma_d, t)   distillation, sCD: the teacher's velocity
    g = cos(t) df^-/dt = -cos^2(t) (sigma_d F^- - dx_t/dt)
                         - r cos(t) sin(t) (x_t + sigma_d dF^-/dt)                  (eq. 8)
    g <- g / (|g| + c)
    L = E exp(w(t)) / D |F - F^- - g|^2 - w(t)                                      (eq. 9)

t = atan(e^tau / sigma_d), tau ~ N(P_mean, P_std^2); r warms up from 0 (velocity matching) to 1;
w is learned. |g| is the L2 norm over all D dimensions in the paper; several codes take the RMS
instead, with which c = 0.1 means something else (``tangent_size``). Their t is ours. Sampling
starts at pi/2, where x_t is noise alone (they start at atan(80 / sigma_d) = 1.5645, and put the
second of two steps at t = 1.1: ``evaluation.times=[[1.5708,1.1,0]]``).

The paper's network has a positional time embedding and adaptive double normalisation; both are
settings of the backbone (``time_embedding=positional``, ``modulation=double``).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from fewstep.errors import check_choice, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, randn
from fewstep.objectives.core.edm import TrigConsistency
from fewstep.objectives.core.learned_weight import LogWeight
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.core.teachers_flow import TeachersFlow
from fewstep.objectives.core.times import trig_times
from fewstep.registry import added


@OBJECTIVES.register("scm")
@dataclass(frozen=True)
class SCM(TrigConsistency):
    """Continuous-time consistency training (sCT).

    Attributes:
        sigma_d: standard deviation of the data, and of the noise.
        p_mean, p_std: mean and standard deviation of tau, the log of the noise level.
        tangent_warmup: steps over which r goes from 0 to 1, but at most half of the training: at
            r < 1 the fixed point is no consistency function.
        tangent_norm: c of the normalisation, beside the size of the whole tangent.
        tangent_size: l2 | rms, that size: the norm over all dimensions, or it over sqrt(D).
        tangent_step: h, at most 1, of dF/dt by central differences in place of the exact tangent:
            over +-h along its direction, so that t moves by h cos(t) sin(t).
    """

    sigma_d: float = 0.5
    p_mean: float = -1.0
    p_std: float = 1.4
    tangent_warmup: int = 10_000
    tangent_norm: float = 0.1
    tangent_size: str = "l2"
    tangent_step: float | None = added(None)

    title: ClassVar[str] = "sCM"

    def __post_init__(self) -> None:
        check_fields("objective", self, "sigma_d p_std tangent_norm", 0, open_low=True)
        check_fields("objective", self, "tangent_step", 0, 1, open_low=True)
        check_range("objective.tangent_warmup", self.tangent_warmup, 0)
        check_choice("objective.tangent_size", self.tangent_size, ("l2", "rms"))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t = trig_times(x, g, self.path, self.p_mean, self.p_std)
        eps = randn(x, g)
        x_t = self.path.mix(x, eps, t)
        dx_t = self.drift(nets, batch, x_t, eps, t)
        F, tangent = self.tangent(nets.online, x_t, dx_t, t, y, progress)

        D = x[0].numel()
        size = tangent.flatten(1).norm(dim=1)
        if self.tangent_size == "rms":
            size = size / math.sqrt(D)
        step = tangent / expand(size + self.tangent_norm, x)
        w = nets.auxiliary(t)
        error = (F - F.detach() - step).square().flatten(1).sum(1)
        return Loss(w.exp() / D * error - w, t, {"tangent_norm": size.mean()})

    def drift(self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt along which f is to be constant."""
        return self.path.velocity(batch.x, eps, t)

    def tangent(
        self, net: Net, x_t: Tensor, dx_t: Tensor, t: Tensor, y: Tensor | None, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """F(x_t / sigma_d, t) and the tangent g = cos(t) df/dt, without gradient.

        One dual-number pass along cos(t) sin(t) (dx_t/dt / sigma_d, 1): the factor, taken into the
        tangents rather than multiplied after, keeps them bounded near t = pi/2.
        """
        sd = self.sigma_d
        cos, sin = expand(t.cos(), x_t), expand(t.sin(), x_t)
        F, J = jvp(
            net,
            lambda x, t: net(x, t, y=y),
            (x_t / sd, t),
            (cos * sin * dx_t / sd, t.cos() * t.sin()),
            step=self.tangent_step,
        )
        warmup = min(self.tangent_warmup, progress.total // 2)
        r = min(1.0, progress.step / warmup) if warmup else 1.0
        g = -(cos**2) * (sd * F.detach() - dx_t) - r * (cos * sin * x_t + sd * J)
        return F, g

    def auxiliary_module(self) -> nn.Module:
        return LogWeight()

    def step_cost(self) -> float:
        return (4 if self.tangent_step is None else 5) / 3


@OBJECTIVES.register("scd")
@dataclass(frozen=True)
class SCD(TeachersFlow, SCM):
    """Continuous-time consistency distillation (sCD) of a teacher's flow.

    Attributes:
        teacher_guidance: guidance scale of the teacher; 1 for none.
        autoguidance: of the teacher, beside a weaker one (``weak_teacher=RUN``); 1 for none.
    """

    title: ClassVar[str] = "sCD"
