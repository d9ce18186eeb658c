"""DMD2, improved distribution matching distillation (Yin et al. 2024, arXiv:2405.14867), no GAN.

    x = G(z), x_t, f_real, f_fake                         as in core/distribution_matching.py
    g = (f_fake - f_real) / (sum |x - f_real| / D)        constant; the mean over coordinates
    L = |x - sg(x - g)|^2 / 2D                            so that dL/dx = g / D

f_fake - f_real is t^2 / (1 - t) times score_fake - score_real, and its mean is the gradient of
KL(samples || data), both noised. Five updates of the companion to one of the network, noise levels
and normalisation are the authors' (github.com/tianweiy/DMD2: main/edm/edm_guidance.py,
train_edm.py), but for a floor of 1e-5 under the latter; the networks' input is noise of level 80.
Their companion regresses x, with EDM's weight of noise levels, at uniform u; at the generator's
update it trains on the same images. Their classifier of real and generated images is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.batch_math import expand, mean_square
from fewstep.objectives.core.distribution_matching import (
    SMALLEST,
    DistributionMatching,
    karras_times,
)


@OBJECTIVES.register("dmd2")
@dataclass(frozen=True)
class DMD2(DistributionMatching):
    """Samples move along the difference of two scores.

    Attributes:
        companion_updates: of the companion, before each update of the network.
        input_time: tau, the time that noise is given to the network at; 1 for t_max.
        low, high: bounds of the noise levels' u.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    companion_updates: int = 5
    input_time: float = 80 / 81
    low: float = 0.02
    high: float = 0.98

    title: ClassVar[str] = "DMD2"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x = self.generate(nets.online, batch, g)
        with torch.no_grad():
            x_t, t = self.noised(x, g)
            real, fake = self.estimates(nets, x_t, t, batch.y)
            scale = (x - real).flatten(1).abs().mean(1).clamp(min=SMALLEST)
            gradient = (fake - real) / expand(scale, x)
        loss = mean_square(x - (x - gradient).detach()) / 2
        return Loss(loss, t, {"score_gap": mean_square(fake - real).mean().sqrt()})

    def companion_times(self, x: Tensor, g: Generator) -> Tensor:
        return karras_times(x, g, 0.0, 1.0)
