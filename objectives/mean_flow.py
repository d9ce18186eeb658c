"""MeanFlow (Geng, Deng, Bai, Kolter & He 2025, eq. 6-11, algorithm 1).

    u(x_t, t, d) = 1/d int_{t-d}^t v dtau          the average velocity, the network's F(x_t, t, d)
    u = v - d du/dt,   du/dt = JVP(F; (v, 1, 1) in (x_t, t, d))          r = t - d is held
    L = |F - sg(v - d du/dt)|^2 / sg(|F - sg(...)|^2 + c)^p,             v = eps - x

t and r are the larger and the smaller of two logit-normal draws; r = t, d = 0 in all rows but a
share of ``jump_share``, and only these take the derivative. Their (r, t) is our (t - d, t).

Guidance is trained in (eq. 19; with k, the appendix), v replaced by
    v_g = w v + k F(x_t, t, 0, y) + (1 - w - k) F(x_t, t, 0, none)
in an interval of t, but not in rows whose label was dropped: sampling needs one call then. The
defaults are those of ImageNet-256; CIFAR-10: jump_share=0.75, p=0.75, c=1e-3, t_mean=-2, t_std=2.

Their network embeds t - r as it embeds t: ``backbone.jump_embedding=linear``. The default, of
log2(1/d), is constant below d = 2^-10.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, randn
from fewstep.objectives.core.label_dropout import kept_rows
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.core.times import logit_normal
from fewstep.registry import added


@OBJECTIVES.register("mean_flow")
@dataclass(frozen=True)
class MeanFlow(AverageVelocity):
    """Regress the average velocity by its differential identity.

    Attributes:
        jump_share: share of the batch's rows with d > 0.
        t_mean, t_std: mean and standard deviation of the logit of both times.
        p, c: power and offset of the adaptive weight; p = 0 is the squared error.
        guidance, mixing: w and k of the guidance trained in; 1 and 0 for none.
        guidance_interval: [from, to], the times t at which it acts.
        tangent_step: h of du/dt by central differences over +-h, in place of the exact tangent.
    """

    jump_share: float = 0.25
    t_mean: float = -0.4
    t_std: float = 1.0
    p: float = 1.0
    c: float = 0.01
    guidance: float = 1.0
    mixing: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    tangent_step: float | None = added(None)

    title: ClassVar[str] = "MeanFlow"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_range("objective.jump_share", self.jump_share, 0, 1)
        check_fields("objective", self, "p guidance mixing", 0)
        check_fields("objective", self, "t_std c tangent_step", 0, open_low=True)
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise UserError(
                f"objective.guidance_interval must be two rising times in [0, 1], "
                f"got {list(self.guidance_interval)}"
            )

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        n = math.ceil(self.jump_share * len(x))  # the first n rows have d > 0
        t, d = self.times(x, n, g)
        eps = randn(x, g)
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)
        v_g = self.guided(nets.online, x_t, t, v, batch)
        F, target = self.identity(nets.online, x_t, t, d, v_g, y, n)
        squared = self.error(F, target)
        logs = {"squared_error": squared.detach().mean()}
        if n:  # of d du/dt
            logs["tangent_norm"] = (target - v_g)[:n].flatten(1).norm(dim=1).mean()
        return Loss(squared / (squared.detach() + self.c) ** self.p, t, logs, d)

    def error(self, F: Tensor, target: Tensor) -> Tensor:
        """|F - target|^2, (B,)."""
        return (F - target).square().flatten(1).sum(1)

    def times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """(t, d), each (B,): two draws in order; d = 0 but for the first n rows."""
        a, b = (logit_normal(x, g, self.t_mean, self.t_std) for _ in range(2))
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        jumps = torch.arange(len(x), device=x.device) < n
        return t, torch.where(jumps, t - r, torch.zeros_like(t))

    def identity(
        self, net: Net, x_t: Tensor, t: Tensor, d: Tensor, v: Tensor, y: Tensor | None, n: int
    ) -> tuple[Tensor, Tensor]:
        """F(x_t, t, d) and its target v - d du/dt, which is v in all but the first n rows."""
        F_jump, F_flow, y_jump = x_t[:0], x_t[:0], None if y is None else y[:n]
        target = v.clone()
        if n:
            one = torch.ones_like(t[:n])
            direction = self.direction(net, x_t[:n], t[:n], v[:n], y_jump)
            F_jump, du_dt = jvp(
                net,
                lambda x, t, d: net(x, t, d, y_jump),
                (x_t[:n], t[:n], d[:n]),
                (direction, one, one),
                step=self.steps_within(t[:n], d[:n]),
            )
            target[:n] -= expand(d[:n], v) * du_dt
        if n < len(t):
            F_flow = net(x_t[n:], t[n:], d[n:], None if y is None else y[n:])
        return torch.cat([F_jump, F_flow]), target

    def steps_within(self, t: Tensor, d: Tensor) -> Tensor | None:
        """``tangent_step``, but so that no time is above 1 and no jump of negative length."""
        if self.tangent_step is None:
            return None
        return torch.minimum(1 - t, d).clamp(1e-4 * self.tangent_step, self.tangent_step)

    def direction(self, net: Net, x_t: Tensor, t: Tensor, v: Tensor, y: Tensor | None) -> Tensor:
        """dx_t/dt along which u is differentiated: the sample's own velocity."""
        return v

    @torch.no_grad()
    def guided(self, net: Net, x_t: Tensor, t: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """v_g, the velocity with guidance trained in."""
        y = batch.undropped_y
        if y is None or batch.y is None or not self.uses_guidance:
            return v
        acts = (t >= self.guidance_interval[0]) & (t <= self.guidance_interval[1])
        acts &= kept_rows(batch.y, y)  # rows whose label was dropped learn the unguided velocity
        return torch.where(expand(acts, v), self.mixture(net, x_t, t, v, y), v)

    def mixture(self, net: Net, x_t: Tensor, t: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """w v + k F(y) + (1 - w - k) F(none)."""
        w, k, now = self.guidance, self.mixing, torch.zeros_like(t)
        v_g = w * v + (1 - w - k) * net(x_t, t, now, None)
        return v_g + k * net(x_t, t, now, y) if k else v_g

    @property
    def uses_guidance(self) -> bool:
        return self.guidance != 1 or self.mixing != 0

    def step_cost(self) -> float | None:
        extra = 0 if self.guidance == 1 and self.mixing == 0 else 1 + (self.mixing > 0)
        tangent = 1 if self.tangent_step is None else 2  # passes forward
        return (3 + tangent * self.jump_share + extra) / 3
