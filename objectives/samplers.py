"""The two ways to draw samples: follow a velocity, or jump to data and noise again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Generator, Tensor

from fewstep.objectives.base import full, randn
from fewstep.objectives.paths import Path

SOLVERS = ("euler", "heun", "midpoint")

Field = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> (B, ...)"""


def integrate(velocity: Field, x: Tensor, times: Sequence[float], solver: str) -> Tensor:
    """Solve dx/dt = velocity(x, t) along ``times``.

    Order 1 and one call a step for ``euler``; order 2 and two calls for ``heun`` and ``midpoint``.
    """
    for t, u in pairwise(times):
        h = u - t  # negative: toward data
        slope = velocity(x, full(t, x))
        if solver == "heun":
            slope = (slope + velocity(x + h * slope, full(u, x))) / 2
        elif solver == "midpoint":
            slope = velocity(x + h / 2 * slope, full(t + h / 2, x))
        x = x + h * slope
    return x


def jump_and_renoise(
    denoise: Field, path: Path, x: Tensor, times: Sequence[float], g: Generator
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1).

    Jump from each time to data; before the next jump, noise the result again with fresh noise.
    """
    for t, u in pairwise(times):
        x = denoise(x, full(t, x))
        if u > 0:
            x = path.mix(x, randn(x, g), full(u, x))
    return x
