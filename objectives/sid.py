"""SiD, score identity distillation (Zhou et al. 2024, arXiv:2404.04057).

    x = G(z), x_t, f_real, f_fake                         as in core/distribution_matching.py
    L = (f_real - f_fake) . ((f_real - x) - alpha (f_real - f_fake)) / sg sum |f_real - x|
      = ((1 - alpha) |f_real - f_fake|^2 + (f_real - f_fake) . (f_fake - x)) / ...

Gradients run through x, x_t and both networks; the weights of both are constant. Where f_fake is
E[x | x_t], the mean of (f_real - f_fake) . (f_real - x) is that of |f_real - f_fake|^2, the Fisher
divergence of samples and data. At alpha = 1/2 the numerator is half of
    |f_real - x|^2 - |f_fake - x|^2
and its gradient half that of the divergence: f_fake is where it is largest. Larger alphas take away
a part that has its own sign. On Gaussians that part outweighs the rest, and pushes samples apart,
where they are wider than sqrt(alpha / (alpha - 1)) times the data: nowhere up to alpha = 1, 2.4 at
1.2, the default (AFHQ-v2 has 1) (as t -> 0; later elsewhere; less the normalisation).

Normalisation (not below 1e-5), noise levels and input (of level 2.5) are those of the authors' code
(github.com/mingyuanzhou/SiD: training/sid_loss.py), which takes sums over coordinates, times 100.
Their companion regresses x at these noise levels, with EDM's weight; ours the velocity.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.errors import check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.batch_math import mean_square
from fewstep.objectives.core.distribution_matching import SMALLEST, DistributionMatching
from fewstep.objectives.core.times import logit_normal


@OBJECTIVES.register("sid")
@dataclass(frozen=True)
class SiD(DistributionMatching):
    """A Fisher divergence between samples and data, back-propagated through both scores.

    Attributes:
        alpha: how much of |f_real - f_fake|^2 is taken away.
        fake_mean, fake_std: mean and standard deviation of the log of the companion's noise level.
        companion_updates: of the companion, before each update of the network.
        input_time: tau, the time that noise is given to the network at; 1 for t_max.
        low, high: bounds of the noise levels' u.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    alpha: float = 1.2
    fake_mean: float = -1.2
    fake_std: float = 1.2
    input_time: float = 2.5 / 3.5
    high: float = 0.8

    title: ClassVar[str] = "SiD"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "fake_std", 0, open_low=True)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x = self.generate(nets.online, batch, g)
        x_t, t = self.noised(x, g)
        real, fake = self.estimates(nets, x_t, t, batch.y)
        gap = real - fake
        product = (gap * (real - x - self.alpha * gap)).flatten(1).mean(1)
        scale = (real - x).detach().flatten(1).abs().mean(1).clamp(min=SMALLEST)
        return Loss(product / scale, t, {"score_gap": mean_square(gap).detach().mean().sqrt()})

    def companion_times(self, x: Tensor, g: Generator) -> Tensor:
        return logit_normal(x, g, self.fake_mean, self.fake_std)

    def passes(self) -> float:
        """And back through teacher and companion."""
        teacher = 1 if self.teacher_guidance == 1 else 2
        return super().passes() + teacher + 1
