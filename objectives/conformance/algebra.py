"""Checks by calculus: the path's formulas and the tangents a loss takes."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.objectives.conformance.case import (
    END,
    TOTAL,
    Case,
    Result,
    nonlinear_test_net,
    rel_error,
    verdict,
)
from fewstep.objectives.core.base import Progress
from fewstep.objectives.core.paths import LinearPath, TrigPath, convert_path
from fewstep.objectives.core.tangent import Function, Tensors, observe_tangents

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
    zero, one, end = t.new_zeros(1), t.new_ones(1), t.new_full((1,), t_max)
    compared = [
        ("velocity against d mix/dt", v, _slope(lambda s: path.mix(x, eps, s), t), DIFFERENCE),
        ("x from x_t and velocity", data, x, EXACT),
        ("eps from x_t and velocity", noise, eps, EXACT),
        ("time_of", path.time_of(path.alpha(t), path.sigma(t) * path.noise_std), t, EXACT),
        ("alpha(0) - 1", path.alpha(zero), one, EXACT),
        ("noise left at t = 0", path.sigma(zero), zero, 0.1),
        ("alpha(t_max)", path.alpha(end), zero, EXACT),
        ("sigma(t_max) - 1", path.sigma(end), one, EXACT),
        ("start against mix at t_max", path.start(eps[:1]), path.mix(x[:1], eps[:1], end), EXACT),
    ]
    for name in ("alpha", "sigma"):
        f, df = getattr(path, name), getattr(path, f"d_{name}")
        _, exact = torch.func.jvp(f, (t,), (torch.ones_like(t),))  # type: ignore[misc]
        compared.append((f"d_{name} against differences", df(t), _slope(f, t), DIFFERENCE))
        compared.append((f"d_{name} against autograd", df(t), exact, EXACT))
    for other in (LinearPath(), TrigPath(0.5)):
        moved, u = convert_path(x_t, t, path, other)
        back, again = convert_path(moved, u, other, path)
        here = f"bridge to {type(other).__name__}"
        compared.append((here, moved, other.mix(x, eps, u), EXACT))
        compared.append((f"{here} and back", back, x_t, EXACT))
        compared.append((f"time of the {here} and back", again, t, EXACT))
    return verdict(*((what, rel_error(a, b), limit) for what, a, b, limit in compared))


def _slope(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    return (f(t + STEP) - f(t - STEP)) / (2 * STEP)


def tangents(case: Case) -> Result:
    """Every tangent a loss takes, against central differences, on a curved network."""
    errors: list[float] = []

    def watch(f: Function, primals: Tensors, directions: Tensors, tangent: Tensor) -> None:
        with torch.no_grad():
            ahead = f(*(p + STEP * v for p, v in zip(primals, directions, strict=True)))
            behind = f(*(p - STEP * v for p, v in zip(primals, directions, strict=True)))
        errors.append(rel_error(tangent, (ahead - behind) / (2 * STEP)))

    nets = case.nets(online=nonlinear_test_net, ema=nonlinear_test_net)
    with observe_tangents(watch):
        for i, progress in enumerate((Progress(TOTAL // 2, TOTAL), END)):
            case.loss(nets, case.batch(ROWS, i), i, progress)
    if not errors:
        return None, "the loss takes none"
    own = getattr(case.objective, "tangent_step", None) or 0.0  # its error grows with the square
    limit = 10 * DIFFERENCE + 10 * own**2
    return verdict((f"{len(errors)} against central differences", max(errors), limit))
