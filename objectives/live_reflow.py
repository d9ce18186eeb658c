"""Live reflow, the shortcut paper's baseline (Frans et al. 2024, appendix): reflow in one stage.

    most rows:  F(x_t, t, 0) -> eps - x                        flow matching on data
    a share:    eps ~ N(0, I),  x^ = S Euler steps of F^-(., ., 0) from eps at t = 1 to 0
                x^_t = (1 - t) x^ + t eps,   F(x^_t, t, 1) -> eps - x^

The pairs are made anew from the current network in every batch. d only tells the two flows apart:
0 for the data's, 1 for the straightened one. Fewer than ``finest`` steps follow the straightened
one. Their code: an eighth of the rows, S = 8, guidance in the Euler steps, t on a grid of 1/128,
1e-5 of noise left in the data. Their t is our 1 - t.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_range
from fewstep.objectives.core.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Objective,
    Progress,
    check_target,
)
from fewstep.objectives.core.batch_math import expand, mean_square, rand, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import guided
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.samplers import integrate
from fewstep.objectives.reflow import straight
from fewstep.registry import added


@OBJECTIVES.register("live_reflow")
@dataclass(frozen=True)
class LiveReflow(Objective):
    """Flow matching, and reflow of what it has learned so far.

    Attributes:
        reflow_share: share of the batch's rows that are pairs.
        pair_steps: S. target: ema | online, the network the pairs are made with. target_decay: of
            that average, whatever is evaluated; None for the same.
        pair_guidance: guidance scale of those steps; 1 for none.
        finest: from this number of steps on, sampling follows the data's flow.
    """

    reflow_share: float = 1 / 8
    pair_steps: int = 8
    target: str = "online"
    pair_guidance: float = 1.0
    finest: int = 128
    target_decay: float | None = added(None)

    title: ClassVar[str] = "Live reflow"
    uses_jump: ClassVar[bool] = True
    jump_is_flag: ClassVar[bool] = True
    jump_range: ClassVar = "any"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_range("objective.reflow_share", self.reflow_share, 0, 1)
        check_range("objective.pair_steps", self.pair_steps, 1)
        check_target(self)
        check_range("objective.pair_guidance", self.pair_guidance, 0)
        check_range("objective.finest", self.finest, 2)

    @torch.no_grad()
    def make_pairs(self, teacher: Net, eps: Tensor, y: Tensor | None) -> Tensor:
        guided_net = guided(teacher, self.pair_guidance, y)

        def field(x: Tensor, t: Tensor) -> Tensor:
            return guided_net(x, t, torch.zeros_like(t), y)

        return integrate(field, eps, self.path.times(self.pair_steps), "euler")

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x.clone(), batch.y
        t, eps = rand(x, g), randn(x, g)
        d = torch.zeros_like(t)
        n = math.ceil(self.reflow_share * len(x))  # the first n rows are pairs
        if n:
            kept = None if batch.undropped_y is None else batch.undropped_y[:n]
            x[:n] = self.make_pairs(nets.target_net(self.target), eps[:n], kept)
            d[:n] = 1
            y = None if y is None or kept is None else torch.cat([kept, y[n:]])
        F = nets.online(self.path.mix(x, eps, t), t, d, y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t, d=d)

    @property
    def uses_guidance(self) -> bool:
        return self.pair_guidance != 1

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        which = ((t - u) * self.finest > 1.001).to(t)  # times are rounded
        return x_t - expand(t - u, x_t) * net(x_t, t, which, y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return net(x_t, t, torch.zeros_like(t), y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        reflowed = straight(self, flow)

        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            assert d is not None
            return torch.where(expand(d > 0, x), reflowed(x, t), flow.velocity(x, t))

        return F

    def step_cost(self) -> float:
        calls = self.pair_steps * (1 if self.pair_guidance == 1 else 2)
        return (3 + calls * self.reflow_share) / 3
