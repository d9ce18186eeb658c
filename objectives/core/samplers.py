"""Solvers of dx/dt = velocity(x, t), from noise to data, and settings that only samplers read."""

from collections.abc import Callable, Sequence
from dataclasses import field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.objectives.core.batch_math import full

SOLVERS = ("euler", "heun", "midpoint", "adaptive")

Field = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> (B, ...)"""


def sampling_field(default: Any) -> Any:
    """A field of an objective that only the sampler reads: it may change without retraining."""
    return field(default=default, metadata={"sampling": True})


def sampling_fields(objective: Any) -> dict[str, Any]:
    """The objective's sampler settings, by name."""
    settings = (f.name for f in fields(objective) if f.metadata.get("sampling"))
    return {name: getattr(objective, name) for name in settings}


def integrate(
    velocity: Field, x: Tensor, times: Sequence[float], solver: str, tolerance: float = 1e-4
) -> Tensor:
    """Solve dx/dt = velocity(x, t) along ``times``.

    Order 1 and one call a step for ``euler``; order 2 and two calls for ``heun`` and ``midpoint``.
    ``adaptive`` goes from the first to the last time in steps of its own, to ``tolerance``.
    """
    if solver == "adaptive":
        return _adaptive(velocity, x, times[0], times[-1], tolerance)
    for t, u in pairwise(times):
        h = u - t  # negative: toward data
        slope = velocity(x, full(t, x))
        if solver == "heun":
            slope = (slope + velocity(x + h * slope, full(u, x))) / 2
        elif solver == "midpoint":
            slope = velocity(x + h / 2 * slope, full(t + h / 2, x))
        x = x + h * slope
    return x


def _adaptive(velocity: Field, x: Tensor, start: float, end: float, tolerance: float) -> Tensor:
    """SciPy's RK45 on the whole batch: its error is controlled over all rows together."""

    def derivative(t: float, flat: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(flat).to(x).view_as(x)
        slope = velocity(at, full(t, x)).double().flatten().cpu().numpy()
        if not np.isfinite(slope).all():  # SciPy would look for a smaller step forever
            raise FloatingPointError(
                f"the adaptive solver gave up: the velocity at {t:.4g} is not finite"
            )
        return slope

    first = x.double().flatten().cpu().numpy()
    from scipy.integrate import solve_ivp  # slow to import, and every command imports this module

    solution = solve_ivp(derivative, (start, end), first, "RK45", rtol=tolerance, atol=tolerance)
    if not solution.success:
        raise FloatingPointError(f"the adaptive solver gave up: {solution.message}")
    return torch.from_numpy(solution.y[:, -1].copy()).to(x).view_as(x)
