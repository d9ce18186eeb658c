"""AMED: a tiny network chooses where a solver's step looks (Zhou et al. 2023, 2312.00094).

By the mean value theorem a step from t to u is (u - t) c times the velocity at some time between,
and trajectories are nearly plane curves: the two numbers s, c make up for most of the error.

    x_s = x_t + (s - t) v(x_t, t),           s = t + r (u - t)
    x_u = x_t + c (u - t) v(x_s, s)
    r, c = g(t, u, x_t, v(x_t, t)),          0 < r < 1,  |c - 1| < scale
    L = |x_u - y_u|^2 from x_t = y_t, y a teacher's trajectory: many steps of the same flow

Before training r = 1/2 and c = 1: the midpoint rule. Each step takes two calls of the network.

Differs from the paper, whose time is the noise level of EDM: s divides the step in the path's own
time and not in its logarithm, which ends at 0 have none of. The paper's g reads the bottleneck of a
U-Net; ours reads three means over the pixels of a row, |x_t|^2, |v|^2 and x_t v, which every
network has. The teacher's trajectories are drawn once, and the step is fitted to them in many
passes. The paper's optional scale of the time that the network is told is left out, as in its
AMED-Solver.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from fewstep.errors import check_fields
from fewstep.objectives.core.batch_math import expand, full, mean_square
from fewstep.objectives.core.samplers import Field, integrate

WIDTH = 32  # of the hidden layer
ROWS = 64  # trajectories of an update
UPDATES = 150  # of each step
LEARNING_RATE = 0.02  # falls to 0; the authors' is 0.005, for 79 updates of each step
CHECKED = 256  # trajectories that the errors are told of

ConditionalField = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B, ...), t (B,), conditions or None) -> velocity (B, ...)"""


@dataclass(frozen=True)
class Amed:
    """How the solver is trained for a network and a schedule.

    Attributes:
        trajectories: how many of the teacher's it is fitted to.
        teacher_steps: midpoint steps of a trajectory, rounded up to a multiple of the solver's.
        scale: how far c may be from 1 (the paper's scale_dir).
    """

    trajectories: int = 256
    teacher_steps: int = 32
    scale: float = 0.01

    def __post_init__(self) -> None:
        check_fields("evaluation.samplers", self, "trajectories teacher_steps", 1)
        check_fields("evaluation.samplers", self, "scale", 0)


def passes(settings: Amed, steps: int) -> int:
    """How many rows go through the network to train for ``steps`` steps, and back to the input."""
    fine = math.ceil(settings.teacher_steps / steps)
    rows = min(settings.trajectories, ROWS)
    check = 2 * min(settings.trajectories, CHECKED)  # before and after
    return steps * (settings.trajectories * (2 * fine + 1) + 2 * UPDATES * rows + check)


class StepPredictor(nn.Module):
    """r and c of a step, (B,) each, from what is known after its first call of the network."""

    def __init__(self, scale: float, g: Generator) -> None:
        super().__init__()
        self.scale = scale
        self.hidden, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        with torch.no_grad():
            self.hidden.weight.normal_(0, 1, generator=g)
            self.hidden.bias.normal_(0, 1, generator=g)
            self.out.weight.zero_()
            self.out.bias.zero_()

    def forward(self, x: Tensor, v: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        means = [(a * b).flatten(1).mean(1) for a, b in ((x, x), (v, v), (x, v))]
        features = torch.stack([t, u, *means], 1)
        r, c = self.out(nn.functional.silu(self.hidden(features))).unbind(1)
        return r.sigmoid(), 1 + self.scale * c.tanh()


def mean_value_step(
    velocity: Field,
    predictor: StepPredictor,
    x: Tensor,
    t: Tensor,
    u: Tensor,
    slope: Tensor | None = None,
) -> Tensor:
    """x_u from x_t, (B, ...), for times (B,); ``slope``: velocity(x, t) where it is known."""
    slope = velocity(x, t) if slope is None else slope
    share, scale = predictor(x, slope, t, u)
    part = share * (u - t)
    mean = velocity(x + expand(part, x) * slope, t + part)
    return x + expand(scale * (u - t), x) * mean


def solve(velocity: Field, predictor: StepPredictor, x: Tensor, times: Sequence[float]) -> Tensor:
    """Solve dx/dt = velocity(x, t) along ``times``, one learned step for each."""
    for t, u in pairwise(times):
        x = mean_value_step(velocity, predictor, x, full(t, x), full(u, x))
    return x


def train(
    velocity: ConditionalField,
    start: Tensor,
    y: Tensor | None,
    times: Sequence[float],
    settings: Amed,
    g: Generator,
) -> tuple[StepPredictor, list[float], list[float]]:
    """A predictor for the steps of ``times``, fitted to the trajectories that begin at ``start``.

    ``start``: (N, ...), x at the first of the times; ``y``: conditions of its rows. The numbers of
    ``g``, on the CPU, are the only random ones. Also returns the mean square error of each step
    before, that of the midpoint rule, and after.
    """
    states, slopes = _teacher(velocity, start, y, times, settings.teacher_steps)
    predictor = StepPredictor(settings.scale, g).to(start)
    optimiser = torch.optim.Adam(predictor.parameters(), LEARNING_RATE)
    total = UPDATES * len(slopes)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)

    def error(step: int, rows: Tensor) -> Tensor:
        part = None if y is None else y[rows]
        x, (t, u) = states[step][rows], (full(times[step + i], states[0][rows]) for i in (0, 1))
        reached = mean_value_step(
            lambda x, t: velocity(x, t, part), predictor, x, t, u, slopes[step][rows]
        )
        return mean_square(reached - states[step + 1][rows]).mean()

    def errors() -> list[float]:
        everything = torch.arange(min(len(start), CHECKED), device=start.device)
        with torch.no_grad():
            return [float(error(step, everything)) for step in range(len(slopes))]

    before = errors()
    with torch.enable_grad():
        for update in range(total):
            rows = torch.randperm(len(start), generator=g)[:ROWS].to(start.device)
            optimiser.zero_grad()
            error(update % len(slopes), rows).backward()
            optimiser.step()
            falling.step()
    return predictor.requires_grad_(False), before, errors()


@torch.no_grad()
def _teacher(
    velocity: ConditionalField, start: Tensor, y: Tensor | None, times: Sequence[float], steps: int
) -> tuple[list[Tensor], list[Tensor]]:
    """A fine solution at ``times``, and the velocity there, but for the last."""
    fine = math.ceil(steps / (len(times) - 1))
    states, slopes = [start], list[Tensor]()
    for t, u in pairwise(times):
        slopes.append(velocity(states[-1], full(t, start), y))
        between = [t + (u - t) * i / fine for i in range(fine)] + [u]
        states.append(integrate(lambda x, t: velocity(x, t, y), states[-1], between, "midpoint"))
    return states, slopes
