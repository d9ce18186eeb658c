"""Checks by calculus: the path's formulas and the tangents a loss takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.objectives.base import Progress
from fewstep.objectives.conformance.case import END, TOTAL, Case, Result, bent, gap, judged
from fewstep.objectives.paths import Linear, Trig, bridge
from fewstep.objectives.tangent import watched

ROWS = 64
EXACT = 1e-9
STEP = 1e-6  # of a central difference: its error is about STEP^2 + 1e-16 / STEP
DIFFERENCE = 1e-7


def path(case: Case) -> Result:
    """Derivatives, ends, inverses and the bridge to other paths, in float64."""
    path, t_max = case.path, case.path.t_max
    t = t_max * torch.linspace(0.01, 0.99, ROWS, dtype=torch.float64)
    x, eps = case.noise(ROWS, 0), case.noise(ROWS, 1)
    x_t, v = path.mix(x, eps, t), path.velocity(x, eps, t)
    data, noise = path.data_and_noise(x_t, v, t)
    zero, end = t.new_zeros(1), t.new_full((1,), t_max)
    measures = [
        ("velocity against d mix/dt", gap(v, _slope(lambda s: path.mix(x, eps, s), t)), DIFFERENCE),
        ("x from x_t and velocity", gap(data, x), EXACT),
        ("eps from x_t and velocity", gap(noise, eps), EXACT),
        ("time_of", gap(path.time_of(path.alpha(t), path.sigma(t) * path.noise_std), t), EXACT),
        ("alpha(0) - 1", float((path.alpha(zero) - 1).abs()), EXACT),
        ("noise left at t = 0", float(path.sigma(zero).abs()), 0.1),
        ("alpha(t_max)", float(path.alpha(end).abs()), EXACT),
        ("sigma(t_max) - 1", float((path.sigma(end) - 1).abs()), EXACT),
        (
            "start against mix at t_max",
            gap(path.start(eps[:1]), path.mix(x[:1], eps[:1], end)),
            EXACT,
        ),
    ]
    for name in ("alpha", "sigma"):
        f, df = getattr(path, name), getattr(path, f"d_{name}")
        _, exact = torch.func.jvp(f, (t,), (torch.ones_like(t),))  # type: ignore[misc]
        measures.append((f"d_{name} against differences", gap(df(t), _slope(f, t)), DIFFERENCE))
        measures.append((f"d_{name} against autograd", gap(df(t), exact), EXACT))
    for other in (Linear(), Trig(0.5)):
        moved, u = bridge(x_t, t, path, other)
        back, again = bridge(moved, u, other, path)
        here = f"bridge to {type(other).__name__}"
        measures.append((here, gap(moved, other.mix(x, eps, u)), EXACT))
        measures.append((f"{here} and back", max(gap(back, x_t), gap(again, t)), EXACT))
    return judged(*measures)


def _slope(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    return (f(t + STEP) - f(t - STEP)) / (2 * STEP)


def tangents(case: Case) -> Result:
    """Every tangent a loss takes, against central differences, on a curved network."""
    errors: list[float] = []

    def watch(
        f: Callable[..., Tensor],
        primals: tuple[Tensor, ...],
        directions: tuple[Tensor, ...],
        tangent: Tensor,
    ) -> None:
        with torch.no_grad():
            ahead = f(*(p + STEP * v for p, v in zip(primals, directions, strict=True)))
            behind = f(*(p - STEP * v for p, v in zip(primals, directions, strict=True)))
        errors.append(gap(tangent, (ahead - behind) / (2 * STEP)))

    with watched(watch):
        for i, progress in enumerate((Progress(TOTAL // 2, TOTAL), END)):
            case.loss(case.nets(online=bent, ema=bent), case.batch(ROWS, i), i, progress)
    if not errors:
        return None, "the loss takes none"
    return judged((f"{len(errors)} against central differences", max(errors), 10 * DIFFERENCE))
