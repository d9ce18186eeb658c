"""Classifier-free guidance (Ho & Salimans 2022): a network wrapped into a network.

F_w(x, t, d, y) = F(x, t, d, none) + w (F(x, t, d, y) - F(x, t, d, none))

In an interval of noise levels only, if one is given (Kynkaanniemi et al. 2024): outside, w = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives.core.base import Net
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.paths import ProbabilityPath

EVERYWHERE = (0.0, 1.0)


@dataclass(frozen=True)
class Guided:
    """``net`` with guidance ``scale`` w.

    ``interval`` is in shares of noise (``ProbabilityPath.noise_fraction``), the linear path's time,
    so that it means the same for every objective; ``path`` says what the times mean. Costs two
    network calls where it acts, one where no row's time is inside.
    """

    net: Net
    scale: float
    path: ProbabilityPath | None = None
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        if self.path is None and self.interval != EVERYWHERE:
            raise UserError(
                f"guidance in the interval {self.interval} needs the path that its times are on: "
                "pass path=objective.path"
            )

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if y is None:
            raise UserError("guidance needs conditions (class labels or vectors), got y=None")
        conditional = self.net(x, t, d, y)
        inside = self._inside(t)
        if self.scale == 1 or (inside is not None and not bool(inside.any())):
            return conditional
        unconditional = self.net(x, t, d, None)
        guided = unconditional + self.scale * (conditional - unconditional)
        return guided if inside is None else torch.where(expand(inside, x), guided, conditional)

    def _inside(self, t: Tensor) -> Tensor | None:
        """(B,) whether guidance acts there; None for everywhere."""
        if self.path is None or self.interval == EVERYWHERE:
            return None
        share = self.path.noise_fraction(t)
        return (share >= self.interval[0]) & (share <= self.interval[1])


def guided(net: Net, scale: float, y: Tensor | None) -> Net:
    """``net`` with guidance, or itself where there is none to give: w = 1 or no labels."""
    return net if scale == 1 or y is None else Guided(net, scale)
