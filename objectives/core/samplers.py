"""Solvers of dx/dt = velocity(x, t), from noise to data, and settings that only samplers read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, check_choice
from fewstep.objectives.core.batch_math import expand, full
from fewstep.objectives.core.paths import LinearPath, ProbabilityPath

SOLVERS = ("euler", "heun", "midpoint", "dpmpp", "adaptive")
LEARNED = "amed"  # a solver that is trained for a finished network (amed.py)

Field = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> (B, ...)"""


def sampling_field(default: Any) -> Any:
    """A field of an objective that only the sampler reads: it may change without retraining."""
    return field(default=default, metadata={"sampling": True})


def sampling_fields(objective: Any) -> dict[str, Any]:
    """The objective's sampler settings, by name."""
    settings = (f.name for f in fields(objective) if f.metadata.get("sampling"))
    return {name: getattr(objective, name) for name in settings}


def check_solver(setting: str, solver: str) -> None:
    """``UserError`` for a solver that an objective cannot have."""
    if solver == LEARNED:
        raise UserError(
            f"{setting}: {LEARNED} is trained for a finished run, which no objective does: ask "
            f"for it with evaluation.samplers=[{{solver: {LEARNED}}}]"
        )
    check_choice(setting, solver, SOLVERS)


def integrate(
    velocity: Field,
    x: Tensor,
    times: Sequence[float],
    solver: str,
    tolerance: float = 1e-4,
    path: ProbabilityPath = LinearPath(),  # noqa: B008  # it is frozen
) -> Tensor:
    """Solve dx/dt = velocity(x, t) along ``times``.

    Order 1 and one call a step for ``euler``; order 2 and two calls for ``heun`` and ``midpoint``;
    order 2 and one call for ``dpmpp``, which has to know the ``path``. ``adaptive`` goes from the
    first to the last time in steps of its own, to ``tolerance``.
    """
    if solver == "adaptive":
        return _adaptive(velocity, x, times[0], times[-1], tolerance)
    if solver == "dpmpp":
        return _multistep(velocity, x, times, path)
    for t, u in pairwise(times):
        h = u - t  # negative: toward data
        slope = velocity(x, full(t, x))
        if solver == "heun":
            slope = (slope + velocity(x + h * slope, full(u, x))) / 2
        elif solver == "midpoint":
            slope = velocity(x + h / 2 * slope, full(t + h / 2, x))
        x = x + h * slope
    return x


def _multistep(velocity: Field, x: Tensor, times: Sequence[float], path: ProbabilityPath) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, 2211.01095, algorithm 2.

    With D_t = E[x | x_t], l = log(alpha / sigma) and s, t, u the last, this and the next time,

        x_u = (sigma_u / sigma_t) x_t + (alpha_u - alpha_t sigma_u / sigma_t) (D_t + w (D_t - D_s))
        w   = (l_u - l_t) / (2 (l_t - l_s))

    The second factor is the paper's alpha_u (1 - exp(l_t - l_u)), and finite at both ends. Without
    w it is DDIM's step. After pure noise, l_s = -inf, w is 0; where l_u = inf it has no limit, and
    the step is D_t, as theirs is (``lower_order_final``).
    """

    def log_ratio(t: float) -> float:  # cos(pi/2) is not quite 0
        at = torch.tensor(t, dtype=torch.float64)
        return -math.inf if t == path.t_max else float(path.log_snr(at)) / 2

    before, length = None, math.inf
    for t, u in pairwise(times):
        now, then = full(t, x), full(u, x)
        data, noise = path.data_and_noise(x, velocity(x, now), now)
        before_length, length = length, log_ratio(u) - log_ratio(t)
        stepped = path.mix(data, noise, then)
        if before is not None and math.isfinite(length):
            ratio = path.sigma(then) / path.sigma(now)
            share = path.alpha(then) - path.alpha(now) * ratio
            weight = length / (2 * before_length)
            stepped = stepped + expand(share * weight, x) * (data - before)
        x, before = stepped, data
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
