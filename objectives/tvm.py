"""Terminal velocity matching, TVM (Zhou, Parger, Haque & Song 2025, arXiv:2511.19797).

    dX(t -> s)/ds = v(X(t -> s), s)                  where a jump ends, it moves with the flow
    L = |F + d dF/dd - sg F_ema(sg X, s, 0)|^2 / D   at (x_t, t, d),  d = t - s,  X = x_t - d F
      + |F(x_s, s, 0) - (eps - x)|^2 / D             the flow, learned where jumps end

The identity is that of Lagrangian self-distillation (``lsd``). What differs: both terms have the
same weight (each has half of the rows here), none is learned, the velocity is of an average of the
network, and the flow is learned at the times s. From summaries of the paper; its network, whose
normalisations keep it Lipschitz, its distribution of times, its decay and the guidance trained in
are not here: times are two uniform draws in order, and the decay is that of the evaluated average.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.objectives.core.base import OBJECTIVES
from fewstep.objectives.lsd import LSD


@OBJECTIVES.register("tvm")
@dataclass(frozen=True)
class TVM(LSD):
    """Jumps whose ends move with the flow that an average of the network has learned.

    The settings are those of ``SelfDistillation``.
    """

    flow_share: float = 0.5
    weight: str = "none"
    target: str = "ema"

    title: ClassVar[str] = "TVM"

    def flow_times(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)
