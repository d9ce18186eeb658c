"""Consistency trajectory models, CTM (Kim et al. 2023, arXiv:2310.02279), without a discriminator.

    G(x_t, t -> s) = s/t x_t + (1 - s/t) g(x_t, t, s)      g estimates the data; g(x_t, t, t) is the
                                                           denoiser, and G(x_t, t -> 0) = g
    L_CTM = d(H(G(x_t, t -> s)), H(sg G(x_u, u -> s))),      H(x_s) = G_ema(x_s, s -> 0)
    L_DSM = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 |x - g(x_sigma, sigma, sigma)|^2 / D
    L     = L_CTM + lambda L_DSM,    lambda = |grad L_CTM| / |grad L_DSM|

x_u is where the teacher's flow takes x_t in n Heun steps on EDM's grid of noise levels (rho = 7):
n of 1, ..., ``steps`` with probability ~ n; t, then s at or below u, uniform on the grid. As in the
authors' code (github.com/sony/ctm, cm/karras_diffusion.py, resample.py, script_util.py), whose
settings for CIFAR-10 are the defaults. L_DSM has log sigma ~ N(-1.2, 1.2^2) in half of the rows, in
the others (80^(1/7) - 0.7 u (80^(1/7) - 0.002^(1/7)))^7, u uniform: the higher levels. The target's
jump to s is the online network's, as in the code; in the paper, from memory, it is the average's.
Their t is a noise level sigma = sigma_d tan(t). On TrigFlow, with g preconditioned as in EDM,

    G(x_t, t -> s) = cos(t - s) x_t - sin(t - s) sigma_d F(x_t / sigma_d, t, t - s)

to the letter (core/edm.py), and L_DSM is flow matching: |F(x_t / sigma_d, t, 0) - v / sigma_d|^2.
What differs: d is the squared error, theirs LPIPS. Their lambda takes the gradients of the last
layer's weights, ours those of the network's outputs: the norms have the same ratio where the rows'
gradients are as coherent in the one loss as in the other. n is drawn for each row (evenly over the
batch), theirs for a batch. H ends at 0, theirs at sigma = 0.002. No discriminator.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Objective,
    Progress,
    check_target,
)
from fewstep.objectives.core.batch_math import (
    expand,
    mean_square,
    rand,
    randint,
    randn,
    same_dropout,
)
from fewstep.objectives.core.edm import karras_levels
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import guided
from fewstep.objectives.core.paths import TrigPath
from fewstep.objectives.core.times import trig_times

HEAVIEST = 1e4  # lambda
RHO = 7.0
FINE = 200  # levels, with which the teacher's steps are as good as exact


@OBJECTIVES.register("ctm")
@dataclass(frozen=True)
class CTM(Objective):
    """Jumps between any two times of a teacher's flow, compared where they arrive at the data.

    Attributes:
        sigma_d: standard deviation of the data, and of TrigFlow's noise.
        levels: how many noise levels the grid has.
        sigma_min, sigma_max: its ends.
        steps: the most Heun steps that the teacher takes, less than ``levels``.
        p_mean, p_std: mean and standard deviation of the log of the noise level in L_DSM.
        wide_share: share of the rows of L_DSM that have high noise levels instead.
        wide_part: how far these reach down from ``sigma_max``, in EDM's scale.
        denoising: factor on lambda; 0 for no L_DSM.
        target: ema | online, the network of H. target_decay: of that average, whatever is
            evaluated; None for the same.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    sigma_d: float = 0.5
    levels: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    steps: int = 17
    p_mean: float = -1.2
    p_std: float = 1.2
    wide_share: float = 0.5
    wide_part: float = 0.7
    denoising: float = 1.0
    target: str = "ema"
    target_decay: float | None = 0.999
    teacher_guidance: float = 1.0

    title: ClassVar[str] = "CTM"
    uses_jump: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    jump_range: ClassVar = "any"

    def __post_init__(self) -> None:
        check_fields("objective", self, "sigma_d sigma_min p_std", 0, open_low=True)
        check_fields("objective", self, "steps", 1)
        check_fields("objective", self, "denoising teacher_guidance", 0)
        check_fields("objective", self, "wide_share wide_part", 0, 1)
        check_target(self)
        for low, high in (("steps", "levels"), ("sigma_min", "sigma_max")):
            bound, value = getattr(self, high), getattr(self, low)
            if value >= bound:
                raise UserError(
                    f"objective.{low} must be less than objective.{high}={bound:g}, got {value:g}"
                )

    @property
    def path(self) -> TrigPath:
        return TrigPath(self.sigma_d)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, sd = batch.x, batch.y, self.sigma_d
        grid = self.grid(x)
        n, start = self.segments(x, g)
        end = start + n
        last = end + randint(0, self.levels - end, g)
        t, u, s = ((grid[i] / sd).atan().to(x.dtype) for i in (start, end, last))
        x_t, behind = self.path.mix(x, randn(x, g), t), nets.target_net(self.target)
        with torch.no_grad():
            x_u = self.follow(nets, x_t, grid, start, n, y)
            with same_dropout(x):
                reached = self.jump(nets.online, x_u, u, s, y)
            target = self.denoise(behind, reached, s, y)
        F = nets.online(x_t / sd, t, t - s, y)
        with torch.enable_grad():  # through H, not into its weights
            output = F.detach().requires_grad_()
            jump = mean_square(self.denoise(behind, self.moved(x_t, output, t, s), s, y) - target)
            (slope,) = torch.autograd.grad(jump.sum(), output)
        jump = jump.detach() + (slope * (F - F.detach())).flatten(1).sum(1)

        r, eps = self.denoising_times(x, g), randn(x, g)
        x_r, v = self.path.mix(x, eps, r), self.path.velocity(x, eps, r)
        error = nets.online(x_r / sd, r, torch.zeros_like(r), y) - v / sd
        noise = mean_square(error)
        norm = (2 * error.detach() / error[0].numel()).norm()
        weight = self.denoising * (slope.norm() / norm.clamp(min=1e-12)).clamp(max=HEAVIEST)
        logs = {
            "loss_jump": jump.detach().mean(),
            "loss_flow": noise.detach().mean(),
            "flow_weight": weight,
        }
        return Loss(jump + weight * noise, t, logs, t - s)

    def denoising_times(self, x: Tensor, g: Generator) -> Tensor:
        """(B,) of L_DSM; the first rows have the high levels."""
        usual = trig_times(x, g, self.path, self.p_mean, self.p_std)
        low, high = self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO)
        sigma = (high - self.wide_part * rand(x, g) * (high - low)) ** RHO
        wide = torch.arange(len(x), device=x.device) < round(self.wide_share * len(x))
        return torch.where(wide, (sigma / self.sigma_d).atan(), usual)

    def grid(self, like: Tensor) -> Tensor:
        """(levels,) EDM's noise levels, falling."""
        return karras_levels(self.sigma_min, self.sigma_max, self.levels, RHO, like).flip(0)

    def segments(self, like: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """(B,) the teacher's steps, n with probability ~ n, and the index where they begin."""
        B = len(like)
        u = rand(like, g).double()
        even = (torch.randperm(B, generator=g, device=like.device) + u) / B
        chance = torch.arange(1, self.steps + 1, device=like.device, dtype=torch.float64)
        n = 1 + torch.searchsorted(chance.cumsum(0) / chance.sum(), even, right=True)
        n = n.clamp(max=self.steps)
        return n, randint(0, self.levels - n, g)

    def follow(
        self, nets: Nets, x_t: Tensor, grid: Tensor, start: Tensor, n: Tensor, y: Tensor | None
    ) -> Tensor:
        """x_u, after ``n`` of the teacher's Heun steps from grid[start], row by row."""
        teacher = guided(nets.teacher_on(self.path), self.teacher_guidance, y)
        path, x_u = self.path, x_t.clone()

        def slope(x_sigma: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
            t = (sigma / self.sigma_d).atan().to(x_t.dtype)
            at = expand(t.cos(), x_t) * x_sigma
            return path.data_and_noise(at, teacher(at, t, y=y), t)[1]

        for k in range(int(n.max())):
            rows = (n > k).nonzero()[:, 0]
            sigma, lower = (grid[start[rows] + i] for i in (k, k + 1))
            scale, final = ((level / self.sigma_d).atan().cos() for level in (sigma, lower))
            x = x_u[rows] / expand(scale, x_t).to(x_t.dtype)
            kept, h = None if y is None else y[rows], expand(lower - sigma, x).to(x.dtype)
            first = slope(x, sigma, kept)
            x = x + h * (first + slope(x + h * first, lower, kept)) / 2
            x_u[rows] = expand(final, x).to(x.dtype) * x
        return x_u

    def moved(self, x_t: Tensor, F: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """G, from the network's output."""
        d = expand(t - s, x_t)
        return d.cos() * x_t - d.sin() * self.sigma_d * F

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return self.moved(x_t, net(x_t / self.sigma_d, t, t - u, y), t, u)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return self.sigma_d * net(x_t / self.sigma_d, t, torch.zeros_like(t), y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        if self.levels < FINE:  # 17 steps on 18 levels miss the flow of Gaussian data by 5%
            return None

        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            assert d is not None
            x_t = self.sigma_d * x
            safe = torch.where(d > 0, d, torch.ones_like(d))
            cos, sin = expand(safe.cos(), x), expand(safe.sin(), x)
            jump = (cos * x_t - flow.map(x_t, t, t - safe)) / sin
            return torch.where(expand(d > 0, x), jump, flow.velocity(x_t, t)) / self.sigma_d

        return F

    def step_cost(self) -> float:
        """With the teacher's mean number of steps, (2 steps + 1) / 3, two calls each."""
        teacher = 2 * (2 * self.steps + 1) / 3 * (1 if self.teacher_guidance == 1 else 2)
        return (10 + teacher) / 3  # twice forward and back, H there and back, two passes to compare
