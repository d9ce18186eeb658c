"""Terminal velocity matching, TVM (Zhou, Parger, Haque & Song 2025, arXiv:2511.19797).

    dX(t -> s)/ds = v(X(t -> s), s)                  where a jump ends, it moves with the flow
    L = |F + d dF/dd - sg F_ema(sg X, s, 0)|^2 / D   at (x_t, t, d),  d = t - s,  X = x_t - d F
      + |F(x_r, r, 0) - (eps - x)|^2 / D             flow matching, at the same x and eps

    logit d ~ N(-0.8, 1);   logit s ~ N(-0.4, 1), s <= 1 - d;   t = s + d;   logit r ~ N(-0.4, 1)

As in the authors' code (github.com/lumalabs/tvm, training/loss.py and wrapper.py; configs): every
row has both terms; the velocity is of an average of decay 0.99; the derivative is back-propagated,
as in ``lsd``. Their network, whose normalisations keep it Lipschitz and whose output is scaled by
the guidance, and the guidance trained in are not here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from fewstep.errors import check_fields
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress, check_target
from fewstep.objectives.core.batch_math import expand, mean_square, rand, randn
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.core.times import logit_normal, logit_normal_below


@OBJECTIVES.register("tvm")
@dataclass(frozen=True)
class TVM(AverageVelocity):
    """Jumps whose ends move with the flow that an average of the network has learned.

    Attributes:
        length_mean, length_std: mean and standard deviation of the logit of d.
        t_mean, t_std: of the logit of the times where jumps end, and of flow matching.
        target: ema | online, the network whose velocity it is. target_decay: of that average,
            whatever is evaluated; None for the same.
    """

    length_mean: float = -0.8
    length_std: float = 1.0
    t_mean: float = -0.4
    t_std: float = 1.0
    target: str = "ema"
    target_decay: float | None = 0.99

    title: ClassVar[str] = "TVM"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "length_std t_std", 0, open_low=True)
        check_target(self)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, net = batch.x, batch.y, nets.online
        d = logit_normal(x, g, self.length_mean, self.length_std)
        s = logit_normal_below(1 - d, rand(x, g), self.t_mean, self.t_std)
        r, eps, zero = logit_normal(x, g, self.t_mean, self.t_std), randn(x, g), torch.zeros_like(d)
        t = (s + d).clamp(max=1)
        x_t = self.path.mix(x, eps, t)

        F, dF = jvp(
            net, lambda d: net(x_t, t, d, y), (d,), (torch.ones_like(d),), keep_gradient=True
        )
        length = expand(d, x)
        with torch.no_grad():
            v = nets.target_net(self.target)(x_t - length * F, s, zero, y)
        jump = mean_square(F + length * dF - v)
        flow = mean_square(net(self.path.mix(x, eps, r), r, zero, y) - (eps - x))
        logs = {"loss_jump": jump.detach().mean(), "loss_flow": flow.detach().mean()}
        return Loss(jump + flow, t, logs, d)

    def step_cost(self) -> float:
        return 10 / 3
