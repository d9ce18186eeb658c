"""sCM, continuous-time consistency training in TrigFlow (Lu & Song 2024, algorithm 1).

    x_t = cos(t) x + sin(t) z,  z ~ N(0, sigma_d^2),   dx_t/dt = cos(t) z - sin(t) x
    f(x_t, t) = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)                     (eq. 6)
    g = cos(t) df^-/dt = -cos^2(t) (sigma_d F^- - dx_t/dt)
                         - r cos(t) sin(t) (x_t + sigma_d dF^-/dt)                  (eq. 8)
    g <- g / (|g| + c)
    L = E exp(w(t)) / D |F - F^- - g|^2 - w(t)                                      (eq. 9)

t = atan(e^tau / sigma_d), tau ~ N(P_mean, P_std^2); r warms up from 0 (velocity matching) to 1;
w is learned. Their t is ours. Sampling starts at pi/2, where x_t is noise alone (they start at
atan(80 / sigma_d), and put the second of two steps at t = 1.1; ``times`` are uniform unless given).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fewstep.errors import check_range
from fewstep.objectives.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Progress,
    is_compiled,
    jvp,
    randn,
)
from fewstep.objectives.paths import Trig, expand
from fewstep.objectives.samplers import jump_and_renoise


@OBJECTIVES.register("scm")
@dataclass(frozen=True)
class SCM:
    """Continuous-time consistency training (sCT).

    Attributes:
        sigma_d: standard deviation of the data, and of the noise.
        p_mean, p_std: mean and standard deviation of tau, the log of the noise level.
        tangent_warmup: steps over which r goes from 0 to 1.
        tangent_norm: c of the normalisation, beside the L2 norm of the whole tangent.
    """

    sigma_d: float = 0.5
    p_mean: float = -1.0
    p_std: float = 1.4
    tangent_warmup: int = 10_000
    tangent_norm: float = 0.1

    title: ClassVar[str] = "sCM"
    uses_jump: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("sigma_d", "p_std", "tangent_norm"):
            check_range(f"objective.{name}", getattr(self, name), 0, open_low=True)
        check_range("objective.tangent_warmup", self.tangent_warmup, 0)

    @property
    def path(self) -> Trig:
        return Trig(self.sigma_d)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        noise_level = torch.exp(self.p_mean + self.p_std * randn(x.flatten(1)[:, 0], g))
        t, eps = torch.atan(noise_level / self.sigma_d), randn(x, g)
        x_t = self.path.mix(x, eps, t)
        F, tangent = self.tangent(nets.online, x_t, self.path.velocity(x, eps, t), t, y, progress)

        norm = tangent.flatten(1).norm(dim=1)
        step = tangent / expand(norm + self.tangent_norm, x)
        D = x[0].numel()
        w = torch.zeros_like(t) if nets.learned is None else nets.learned(t)
        error = (F - F.detach() - step).square().flatten(1).sum(1)
        return Loss(w.exp() / D * error - w, t, {"tangent_norm": norm.mean()})

    def tangent(
        self,
        net: Net,
        x_t: Tensor,
        dx_t: Tensor,
        t: Tensor,
        y: Tensor | None,
        progress: Progress,
    ) -> tuple[Tensor, Tensor]:
        """F(x_t / sigma_d, t) and the tangent g = cos(t) df/dt, without gradient.

        One dual-number pass along cos(t) sin(t) (dx_t/dt / sigma_d, 1): the factor, taken into the
        tangents rather than multiplied after, keeps them bounded near t = pi/2.
        """
        sd = self.sigma_d
        cos, sin = expand(t.cos(), x_t), expand(t.sin(), x_t)
        F, J = jvp(
            lambda x, t: net(x, t, y=y),
            (x_t / sd, t),
            (cos * sin * dx_t / sd, t.cos() * t.sin()),
            is_compiled(net),
        )
        r = min(1.0, progress.step / self.tangent_warmup) if self.tangent_warmup else 1.0
        g = -(cos**2) * (sd * F.detach() - dx_t) - r * (cos * sin * x_t + sd * J)
        return F, g

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """f(x_t, t), the jump to data."""
        cos, sin = expand(t.cos(), x_t), expand(t.sin(), x_t)
        return cos * x_t - sin * self.sigma_d * net(x_t / self.sigma_d, t, y=y)

    def sample(
        self, net: Net, noise: Tensor, y: Tensor | None, times: Sequence[float], g: Generator
    ) -> Tensor:
        start = self.sigma_d * noise  # x_t at t = pi/2, where the data's share is 0
        return jump_and_renoise(lambda x, t: self.denoise(net, x, t, y), self.path, start, times, g)

    def learned_parts(self) -> nn.Module:
        return LogWeight()


class LogWeight(nn.Module):
    """w(t): (B,) -> (B,), a linear layer on a few cosines and sines of t; 0 at first."""

    frequencies: Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0, 8, features // 2), persistent=False)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        phase = t.float()[:, None] * self.frequencies
        features = torch.cat([phase.cos(), phase.sin()], dim=1) / math.sqrt(phase.shape[1])
        return self.linear(features)[:, 0]
