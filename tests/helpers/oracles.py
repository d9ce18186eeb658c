"""Closed forms for data ~ N(0, s^2 I): the network that each objective ought to learn.

With x_t = a x + b eps and var(t) = a^2 s^2 + b^2 (b holds the noise's standard deviation),

- velocity          v(x, t)    = x (a' a s^2 + b' b) / var(t)
- flow map t -> u   x sqrt(var(u) / var(t))
- shortcut          F(x, t, d) = x (1 - sqrt(var(t - d) / var(t))) / d
- consistency       f(x, t)    = x s / sqrt(var(t))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.objectives import SCM, Consistency, FlowMatching, Linear, Path, Shortcut
from fewstep.objectives.paths import expand

S = 0.7  # the data's standard deviation; sigma_d below is another number, and neither is 1
SIGMA_D = 0.5


def var(path: Path, t: Tensor) -> Tensor:
    return path.alpha(t) ** 2 * S**2 + (path.noise_std * path.sigma(t)) ** 2


def velocity(path: Path, x: Tensor, t: Tensor) -> Tensor:
    numerator = path.alpha(t) * path.d_alpha(t) * S**2
    numerator = numerator + path.noise_std**2 * path.sigma(t) * path.d_sigma(t)
    return x * expand(numerator / var(path, t), x)


def flow_map(path: Path, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    return x * expand((var(path, u) / var(path, t)).sqrt(), x)


def flow_oracle(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    assert d is None
    return velocity(Linear(), x, t)


def shortcut_oracle(
    x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    assert d is not None
    safe = torch.where(d > 0, d, torch.ones_like(d))
    jump = (x - flow_map(Linear(), x, t, t - safe)) / expand(safe, x)
    return torch.where(expand(d, x) > 0, jump, velocity(Linear(), x, t))


def consistency_oracle(
    x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    assert d is None
    safe = t.clamp(min=1e-12)  # F(x, 0) never matters: it is multiplied by t = 0
    return (x - flow_map(Linear(), x, t, torch.zeros_like(t))) / expand(safe, x)


def scm_oracle(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """F of f = cos x_t - sin sigma_d F(x_t / sigma_d, t), where u = x_t / sigma_d."""
    assert d is None
    path = SCM(sigma_d=SIGMA_D).path
    x = SIGMA_D * u
    data = flow_map(path, x, t, torch.zeros_like(t))
    return (expand(t.cos(), x) * x - data) / (expand(t.sin(), x) * SIGMA_D)


@dataclass(frozen=True)
class Known:
    """An objective and the network it should find.

    ``objective`` is set so that its exact minimiser is the oracle (as fine a grid as wanted, the
    tangent fully warmed up); ``start`` is the standard deviation of its samples' first x.
    """

    objective: FlowMatching | Shortcut | Consistency | SCM
    oracle: Callable[..., Tensor]


KNOWN = {
    "flow_matching": Known(FlowMatching(), flow_oracle),
    "shortcut": Known(Shortcut(), shortcut_oracle),
    "consistency": Known(Consistency(stages=12), consistency_oracle),
    "scm": Known(SCM(sigma_d=SIGMA_D, tangent_warmup=0), scm_oracle),
}
