"""Progressive self-distillation, PSD (Boffi, Albergo & Vanden-Eijnden 2025).

    X(t -> s) = X(u -> s) after X(t -> u)            two jumps make one
    r = F(x_t, t, d) - sg[h F(x_t, t, h d) + (1 - h) F(x_u, u, (1 - h) d)]
        d = t - s,  u = t - h d,  x_u = x_t - h d F(x_t, t, h d)

h is drawn from U(0, 1), or 1/2, which is shortcut models' self-consistency. SplitMeanFlow (Guo et
al. 2025) is the first without the learned weight.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice
from fewstep.objectives.core.base import OBJECTIVES, Nets
from fewstep.objectives.core.batch_math import expand, rand
from fewstep.objectives.core.self_distillation import SelfDistillation


@OBJECTIVES.register("psd")
@dataclass(frozen=True)
class PSD(SelfDistillation):
    """Jumps that are made of two.

    The settings of ``SelfDistillation``, and:

    Attributes:
        split: uniform | middle, where a jump is cut in two.
    """

    split: str = "uniform"

    title: ClassVar[str] = "PSD"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.split", self.split, ("uniform", "middle"))

    def residual(
        self, nets: Nets, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None, g: Generator
    ) -> Tensor:
        net = nets.target_net(self.target)
        h = rand(x_t, g) if self.split == "uniform" else torch.full_like(t, 0.5)
        first = h * d
        with torch.no_grad():
            F1 = net(x_t, t, first, y)
            F2 = net(x_t - expand(first, x_t) * F1, t - first, d - first, y)
            target = expand(h, x_t) * F1 + expand(1 - h, x_t) * F2
        return nets.online(x_t, t, d, y) - target

    def step_cost(self) -> float:
        return (3 + 2 * (1 - self.flow_share)) / 3
