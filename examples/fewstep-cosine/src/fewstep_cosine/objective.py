"""Flow matching on the variance-preserving path with a cosine schedule.

    x_t = cos(pi t / 2) x + sin(pi t / 2) eps,    v = dx_t/dt
    L   = E |F(x_t, t) - v|^2,  t ~ U(0, 1)

The schedule is Nichol & Dhariwal's (2021, eq. 17) with s = 0, also called generalised variance
preserving (SiT, Ma et al. 2024); up to time's unit, F is the v-prediction of Salimans & Ho (2022).
One step in time from t to u goes, for fixed estimates of x and eps, along the arc (DDIM):
    x_u = cos(pi (t - u) / 2) x_t - sin(pi (t - u) / 2) (2 / pi) F
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.objectives import (
    Batch,
    GaussianFlow,
    Loss,
    Net,
    Nets,
    Objective,
    ProbabilityPath,
    Progress,
    expand,
    mean_square,
    rand,
    randn,
)

HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Cosine(ProbabilityPath):
    """x_t = cos(pi t / 2) x + sin(pi t / 2) eps, t in [0, 1]."""

    t_max: ClassVar[float] = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return (HALF_PI * t).cos()

    def sigma(self, t: Tensor) -> Tensor:
        return (HALF_PI * t).sin()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -HALF_PI * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return HALF_PI * self.alpha(t)

    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        return torch.atan2(noise, signal) / HALF_PI


@dataclass(frozen=True)
class CosineFlow(Objective):
    """Regress the velocity of the cosine path; its one setting, and so its option, is ``power``.

    Attributes:
        power: t = U(0, 1)^power in training; below 1, more of it near noise.
    """

    power: float = 1.0

    title: ClassVar[str] = "Flow matching, cosine"
    path: ClassVar[Cosine] = Cosine()

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"objective.power must be greater than 0, got {self.power}")

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x = batch.x
        t, eps = rand(x, g) ** self.power, randn(x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=batch.y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        arc = expand(HALF_PI * (t - u), x_t)
        return arc.cos() * x_t - arc.sin() / HALF_PI * net(x_t, t, y=y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """So that a run of it can teach: distillation asks for nothing else."""
        return net(x_t, t, y=y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        """What ``fewstep check`` holds loss and sampler against."""
        return lambda x, t, d=None, y=None: flow.velocity(x, t)

    def step_cost(self) -> float:
        return 1.0
