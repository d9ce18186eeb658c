"""Inductive moment matching, IMM (Zhou, Ermon & Song 2025, arXiv:2503.07565).

    f(x_t, t -> s) = x_t - (t - s) F(x_t, t, t - s)              Euler-FM, or Simple-EDM:
                   = [(a_t a_s + b_t b_s) x_t - (t - s) n F] / n^2,   a = 1 - t,  b = t,
                                                                 n^2 = a_t^2 + b_t^2
    L = w(t) MMD^2(f(x_t, t -> s), sg f(x_r, r -> s)),  x_r = (1 - r) x + r eps: the noise of x_t
    MMD^2(y, z) = 1/M^2 sum_jk k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k)
    k(y, z) = exp(-|y - z| / (D c)),  c = |c_out| = t - s, over n for Simple-EDM
    w = 1/2 sigmoid(b - lambda_t) (-dlambda_t/dt) a_t^a / n^2,  lambda_t = 2 log(a_t / b_t)

M rows, a group, share the times: t ~ U(0, end), s ~ U(0, t), and r closer to s by a constant
decrement of the noise level eta = t / (1 - t):  eta(r) = eta(t) - eta(end) / 2^k, but s <= r <=
t - gap. So samples of two maps are compared that should have one distribution at s, by induction
that of x_s; with M = 1 it is a consistency loss. Numbers of equations are not known to us: the loss
is that of the authors' code as public copies and re-implementations have it (training/loss.py,
preconds.py), for the path OT-FM, with data and noise divided by sigma_d there. Targets know the
labels that their predictions were denied by label dropout. Their c_in is not here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, in_groups, rand, randn, same_dropout
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath

PARAMETERISATIONS = ("euler_fm", "simple_edm")
SHORTEST = 1e-6  # jump; the kernel's width is its length
NEAREST = 1e-8  # of two samples
FINE = 16  # k, with which the exact map is the minimum to what can be measured


@OBJECTIVES.register("imm")
@dataclass(frozen=True)
class IMM(Objective):
    """Jumps whose results have the distribution of those of somewhat shorter jumps.

    Attributes:
        group_size: M, rows that share their times; a divisor of the batch size.
        parameterisation: euler_fm | simple_edm.
        k: how near r is to t, in halvings of the noise level at ``end``.
        gap: the least t - r, but for jumps shorter than that.
        a, b: of the weight w, its power of the signal and its shift of the log-SNR.
        end: the largest t that is trained.
    """

    group_size: int = 4
    parameterisation: str = "euler_fm"
    k: float = 12.0
    gap: float = 1e-4
    a: float = 2.0
    b: float = 4.0
    end: float = 0.994

    title: ClassVar[str] = "IMM"
    uses_jump: ClassVar[bool] = True
    jump_range: ClassVar = "any"
    shares_noise: ClassVar[bool] = True
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "group_size", 1)
        check_fields("objective", self, "k a gap", 0)
        check_fields("objective", self, "end", 0, 0.9999, open_low=True)
        check_choice("objective.parameterisation", self.parameterisation, PARAMETERISATIONS)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, M = batch.x, self.group_size
        groups = in_groups(x, M)
        t = self.end * rand(groups, g)
        s = t * rand(groups, g)
        r = self.closer(t, s)
        weight = self.weight(t)
        t, s, r, weight = (each.repeat_interleave(M) for each in (t, s, r, weight))

        eps = randn(x, g)
        x_t, x_r = self.path.mix(x, eps, t), self.path.mix(x, eps, r)
        with torch.no_grad(), same_dropout(x):
            z = self.jump(nets.online, x_r, r, s, batch.undropped_y)
        y = self.jump(nets.online, x_t, t, s, batch.y)
        width = self.scalings(t, s)[1][::M].clamp(min=SHORTEST)
        distance = mmd(in_groups(y, M).flatten(2), in_groups(z, M).flatten(2), width)
        logs = {"mmd": distance.detach().mean()}
        return Loss(weight * distance.repeat_interleave(M), t, logs, t - s)

    def closer(self, t: Tensor, s: Tensor) -> Tensor:
        """r(s, t)."""
        fall = self.end / (1 - self.end) / 2**self.k * (1 - t)
        r = (t - fall).clamp(min=0) / (1 - fall).clamp(min=SHORTEST)  # t / (1 - t) falls by it
        return torch.maximum(s, torch.minimum(t - self.gap, r))

    def weight(self, t: Tensor) -> Tensor:
        """w, in a form that is finite at t = 0."""
        signal = 1 - t
        falling = t.square() + signal.square() * torch.exp(-torch.full_like(t, self.b))
        return t * signal ** (self.a - 1) / (falling * (signal.square() + t.square()))

    def scalings(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and |c_out| of a jump, (B,)."""
        if self.parameterisation == "euler_fm":
            return torch.ones_like(t), t - s
        size = (1 - t).square() + t.square()
        return ((1 - t) * (1 - s) + t * s) / size, (t - s) / size.sqrt()

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        c_skip, c_out = (expand(c, x_t) for c in self.scalings(t, u))
        return c_skip * x_t - c_out * net(x_t, t, t - u, y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        if self.k < FINE:  # a larger step from t to r leaves the minimum beside the exact map
            return None

        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            assert d is not None
            s = t - d.clamp(min=SHORTEST)  # F at d = 0 is multiplied by 0
            c_skip, c_out = (expand(c, x) for c in self.scalings(t, s))
            return (c_skip * x - flow.map(x, t, s)) / c_out

        return F

    def step_cost(self) -> float:
        return 4 / 3


def mmd(y: Tensor, z: Tensor, width: Tensor) -> Tensor:
    """(G,) squared discrepancies of groups ``y`` and ``z``, (G, M, D); ``width``: (G,), c.

    Each row is compared with itself, too (a V-statistic): such pairs only add a constant.
    """

    def similarity(y: Tensor, z: Tensor) -> Tensor:
        square = (y[:, :, None] - z[:, None]).square().sum(-1)
        distance = square.clamp(min=NEAREST**2).sqrt() / y.shape[-1]  # a root has no slope at 0
        return (-distance / expand(width, square)).exp().mean((1, 2))

    return similarity(y, y) + similarity(z, z) - 2 * similarity(y, z)
