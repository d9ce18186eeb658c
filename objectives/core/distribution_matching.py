"""What one-step generators share that match a teacher's distribution with a companion's help.

    x = G(z) = tau (z - F(tau z, tau)),  z ~ N(0, I)           a sample of the network, tau <= 1
    x_t = (1 - t) x + t eps                                    noised again
    f_real = x_t - t T(x_t, t)                                 E[data | x_t], T the teacher's flow
    f_fake = x_t - t C(x_t, t)                                 E[x | x_t], C the companion
    companion:  L = E |C(x_t, t) - (eps - x)|^2 / D            flow matching

(1 - t) (f_real - f_fake) / t^2 is the difference of the two scores of x_t. Neither loss looks at
data, only at their labels. The papers write x + sigma eps, that is x_t / (1 - t), and the noise
levels sigma = t / (1 - t) of the network's loss are (Karras et al. 2022, eq. 5)
    sigma = (0.002^(1/7) + u (80^(1/7) - 0.002^(1/7)))^7,  u uniform
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.base import Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, full, mean_square, rand, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import guided
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.samplers import integrate

KARRAS = 0.002, 80.0, 7.0  # smallest and largest noise level, and rho
SMALLEST = 1e-5  # error |x - f_real| that a loss is divided by


@dataclass(frozen=True)
class DistributionMatching(Objective):
    """A generator that is taught by the difference of two velocities at its own samples.

    Attributes:
        companion_updates: of the companion, before each update of the generator.
        input_time: tau. As a noise level, tau / (1 - tau).
        low, high: bounds of u.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    companion_updates: int = 1
    input_time: float = 1.0
    low: float = 0.0
    high: float = 1.0
    teacher_guidance: float = 1.0

    needs_teacher: ClassVar[bool] = True
    jump_range: ClassVar = "one_step"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_fields("objective", self, "companion_updates", 1)
        check_fields("objective", self, "input_time", 0, 1, open_low=True)
        check_fields("objective", self, "low high", 0, 1)
        if self.low >= self.high:
            raise UserError(
                f"objective.low must be less than objective.high={self.high:g}, got {self.low:g}"
            )
        check_range("objective.teacher_guidance", self.teacher_guidance, 0)

    def generate(self, net: Net, batch: Batch, g: Generator) -> Tensor:
        """A sample (B, ...) for each of the batch's labels."""
        z = randn(batch.x, g)
        return self.jump(net, z, full(1.0, z), full(0.0, z), batch.y)

    def companion_loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        with torch.no_grad():
            x = self.generate(nets.online, batch, g)
        t, eps = self.companion_times(x, g), randn(x, g)
        C = nets.companion(self.path.mix(x, eps, t), t, y=batch.y)
        return Loss(mean_square(C - self.path.velocity(x, eps, t)), t)

    @abstractmethod
    def companion_times(self, x: Tensor, g: Generator) -> Tensor:
        """t (B,) of the companion's loss."""

    def noised(self, x: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """x_t (B, ...) and its t (B,), for the network's loss."""
        t = karras_times(x, g, self.low, self.high)
        return self.path.mix(x, randn(x, g), t), t

    def estimates(
        self, nets: Nets, x_t: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """f_real and f_fake, (B, ...)."""
        teacher = guided(nets.teacher_on(self.path), self.teacher_guidance, y)
        real, fake = teacher(x_t, t, y=y), nets.companion(x_t, t, y=y)
        return x_t - expand(t, x_t) * real, x_t - expand(t, x_t) * fake

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        """From t_max alone: there noise is taken as what it is at the time tau."""
        x_t, t, u = (self.input_time * a for a in (x_t, t, u))
        return x_t - expand(t - u, x_t) * net(x_t, t, y=y)

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        y: Tensor | None = None,
        times: int | Sequence[float] = 1,
        g: Generator | None = None,
    ) -> Tensor:
        """The times are scaled by tau. One step is what is trained; several are Euler's."""
        tau = self.input_time
        scaled = [tau * t for t in self.path.times(times)]
        return integrate(lambda x, t: net(x, t, y=y), tau * self.path.start(noise), scaled, "euler")

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        """One of many: any F whose samples are N(0, std^2)."""
        tau = self.input_time
        return lambda x, t, d=None, y=None: x * ((1 - flow.std / tau) / tau)

    def gaussian_companion(self, flow: GaussianFlow) -> Net:
        return lambda x, t, d=None, y=None: flow.velocity(x, t)

    def passes(self) -> float:
        """Of a step: C's forward and back, and before it G's; G's forward and back; T's and C's."""
        teacher = 1 if self.teacher_guidance == 1 else 2
        return 4 * self.companion_updates + 3 + teacher + 1

    def step_cost(self) -> float:
        return self.passes() / 3

    def forward_passes(self) -> float:
        return 3 if self.teacher_guidance == 1 else 4


def karras_times(like: Tensor, g: Generator, low: float, high: float) -> Tensor:
    """Times (B,) on the linear path of noise levels with ``low`` <= u < ``high``."""
    smallest, largest, rho = KARRAS
    first, last = smallest ** (1 / rho), largest ** (1 / rho)
    u = low + (high - low) * rand(like, g)
    sigma = (first + u * (last - first)) ** rho
    return sigma / (1 + sigma)
