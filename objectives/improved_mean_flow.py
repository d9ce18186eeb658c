"""Improved MeanFlow, iMF (Geng, Lu, Wu, Shechtman, Kolter & He 2025, eq. 11-13).

    V = F(x_t, t, d) + d sg(du/dt),   du/dt = JVP(F; (v_F, 1, 1)),   v_F = F(x_t, t, 0)
    L = |V - v|^2 / sg(|V - v|^2 + c)^p,                             v = eps - x

A regression on the velocity itself: V is a function of x_t alone, because the derivative is taken
along the predicted velocity instead of the sample's own. As V - v = F - (v - d du/dt), it is
MeanFlow's loss with another direction. Half of the rows have d > 0. Their time is ours.

Guidance is trained in as v_g = v + (1 - 1/w) (F(x_t, t, 0, y) - F(x_t, t, 0, none)), at one w. The
paper's network is conditioned on w and the interval, and has a second head for v_F; the shared
backbone has neither, so v_F is the network at d = 0 (the paper's first variant), called with the
label that the row is trained with, dropped or not.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.objectives.core.base import OBJECTIVES, Net
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("improved_mean_flow")
@dataclass(frozen=True)
class ImprovedMeanFlow(MeanFlow):
    """MeanFlow as a regression on the velocity; the settings are MeanFlow's, less ``mixing``."""

    jump_share: float = 0.5

    title: ClassVar[str] = "iMF"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objective.guidance", self.guidance, 0, open_low=True)
        if self.mixing:
            raise UserError(
                f"objective.mixing is MeanFlow's alone and must be 0, got {self.mixing}"
            )

    @torch.no_grad()
    def direction(self, net: Net, x_t: Tensor, t: Tensor, v: Tensor, y: Tensor | None) -> Tensor:
        """The network's own velocity."""
        return net(x_t, t, torch.zeros_like(t), y)

    def mixture(self, net: Net, x_t: Tensor, t: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """v + (1 - 1/w) (F(y) - F(none))."""
        now = torch.zeros_like(t)
        return v + (1 - 1 / self.guidance) * (net(x_t, t, now, y) - net(x_t, t, now, None))

    def step_cost(self) -> float:
        passes = 2 if self.tangent_step is None else 3
        return (3 + passes * self.jump_share + (0 if self.guidance == 1 else 2)) / 3
