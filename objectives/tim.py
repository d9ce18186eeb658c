"""TiM, transition models (Wang et al. 2025, arXiv:2509.04394), on the linear path.

    F(x_t, t, d) -> v - d du/dt,   v = eps - x,   r = t - d held         MeanFlow's identity
    du/dt = [F(x_{t+h}, t + h, d + h) - F(x_{t-h}, t - h, d - h)] / 2h    by differences, h = 0.005
    e = |F - sg(...)|^2 / D + 1 - cos(F, sg(...))
    L = w e / sg(e + c),   w = (tan(t) - tan(r) + 1)^(-1/2)

Half of the rows have d = 0, a tenth d = t (r = 0), the others two logit-normal draws in order. From
the authors' code (github.com/WZDTHU/TiM: tim/schedulers, the trainer and configuration of classes
at 256 pixels); the cosine is taken over channels. Their (t, r) is our (t, t - d). Their network has
further embeddings of t - r, and a loss on features of another network (REPA); neither is here.

The exact flow map is no minimum of it, even on Gaussian data: a target that points as F does weighs
more than one that does not, and pulls F along. Without the cosine it is one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import cosine_distance, mean_square
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("tim")
@dataclass(frozen=True)
class TiM(MeanFlow):
    """MeanFlow by differences, weighted by the length of the jump.

    The settings of MeanFlow, but that c stands beside a mean over coordinates, and:

    Attributes:
        cosine: weight of the direction beside the squared error.
        to_data_share: share of the batch's rows with d = t, which are among those with d > 0.
    """

    jump_share: float = 0.5
    c: float = 1e-5
    tangent_step: float | None = 0.005
    to_data_share: float = 0.1
    cosine: float = 1.0

    title: ClassVar[str] = "TiM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "to_data_share cosine", 0)
        if self.to_data_share > self.jump_share:
            raise UserError(
                f"objective.to_data_share must be at most objective.jump_share={self.jump_share}, "
                f"got {self.to_data_share}"
            )

    def times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """As MeanFlow's, but that the first rows have d = t."""
        t, d = super().times(x, n, g)
        whole = torch.arange(len(x), device=x.device) < min(round(self.to_data_share * len(x)), n)
        return t, torch.where(whole, t, d)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        return super().gaussian_optimum(flow, progress) if self.cosine == 0 else None

    def error(self, F: Tensor, target: Tensor) -> Tensor:
        return mean_square(F - target) + self.cosine * cosine_distance(F, target)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().loss(nets, batch, progress, g)
        assert loss.d is not None
        weight = (loss.t.tan() - (loss.t - loss.d).tan() + 1).rsqrt()
        return Loss(weight * loss.per_sample, loss.t, loss.logs, loss.d)
