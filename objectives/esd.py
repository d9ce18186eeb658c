"""Eulerian self-distillation, ESD (Boffi, Albergo & Vanden-Eijnden 2025).

    dX(t -> s)/dt + dX(t -> s)/dx v(x_t, t) = 0      where on its way a jump begins is the same
    r = F + d (dF/dt + dF/dd + dF/dx v) - v          at (x_t, t, d), d = t - s, v = sg F(x_t, t, 0)

Which derivatives are back-propagated (``gradient_of``): none, and r is that of MeanFlow along the
network's own velocity; those in the times, and dF/dx v is a constant; or all. The authors found all
of them unstable without further means.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice
from fewstep.objectives.core.base import OBJECTIVES, Nets
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.self_distillation import SelfDistillation
from fewstep.objectives.core.tangent import jvp


@OBJECTIVES.register("esd")
@dataclass(frozen=True)
class ESD(SelfDistillation):
    """Jumps that do not depend on where on the learned flow they begin.

    The settings of ``SelfDistillation``, and:

    Attributes:
        gradient_of: none | times | all, the derivatives that are back-propagated.
    """

    gradient_of: str = "times"

    title: ClassVar[str] = "ESD"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.gradient_of", self.gradient_of, ("none", "times", "all"))

    def residual(
        self, nets: Nets, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None, g: Generator
    ) -> Tensor:
        net, target, one = nets.online, nets.target_net(self.target), torch.ones_like(t)
        with torch.no_grad():
            v = target(x_t, t, torch.zeros_like(t), y)
        if self.gradient_of == "times":
            F, dF = jvp(net, lambda t, d: net(x_t, t, d, y), (t, d), (one, one), keep_gradient=True)
            with torch.no_grad():
                _, along = jvp(target, lambda x: target(x, t, d, y), (x_t,), (v,))
            dF = dF + along
        else:
            F, dF = jvp(
                net, lambda x, t, d: net(x, t, d, y), (x_t, t, d), (v, one, one),
                keep_gradient=self.gradient_of == "all",
            )  # fmt: skip
        return F + expand(d, x_t) * dF - v

    def step_cost(self) -> float:
        passes = {"none": 5, "times": 9, "all": 7}[self.gradient_of]
        return (3 + (passes - 3) * (1 - self.flow_share)) / 3
