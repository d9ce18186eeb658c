"""Which widths of averaging can be made of stored ones (Karras et al. 2024, section 3.2).

An average is an integral of the weights over the steps, with a profile p(s) = (g + 1) s^g / t^(g+1)
up to its step t. The profile of another width is fitted by those of all stored averages, in least
squares. How well depends on their widths and steps alone, so it is known before the training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError, counted
from fewstep.experiments.config.averages import WIDTH, gamma

WORST_FIT = 0.05  # of a profile, in L2: beyond it, another average would be shown in its place
MOST_STEPS = 500  # that are looked at beforehand: more could only fit better


@dataclass(frozen=True)
class Profile:
    """``step``: t, the last step that the average has. ``sigma_rel``: its width."""

    step: int
    sigma_rel: float

    @property
    def gamma(self) -> float:
        return gamma(self.sigma_rel)


def dots(ours: Sequence[Profile], theirs: Sequence[Profile]) -> NDArray[np.float64]:
    """The integrals over all steps of the product of each of ``ours`` with each of ``theirs``."""

    def column(profiles: Sequence[Profile], name: str) -> NDArray[np.float64]:
        return np.array([getattr(profile, name) for profile in profiles], np.float64)

    t, g = column(ours, "step")[:, None], column(ours, "gamma")[:, None]
    other_t, other_g = column(theirs, "step"), column(theirs, "gamma")
    both = np.minimum(t, other_t)
    ends = (both / t) ** (g + 1) * (both / other_t) ** (other_g + 1)
    integrals: NDArray[np.float64] = (g + 1) * (other_g + 1) / (g + other_g + 1) * ends / both
    return integrals


@dataclass(frozen=True)
class Fit:
    """The profile ``wanted`` as a combination of those that are ``kept``."""

    kept: Sequence[Profile]
    wanted: Profile

    @cached_property
    def coefficients(self) -> NDArray[np.float64]:
        """One for each of ``kept``; their sum is 1, for weights that stand still stay."""
        products = dots(self.kept, self.kept)
        norms = products.diagonal() ** 0.5
        wanted = dots(self.kept, [self.wanted])[:, 0] / norms
        scaled = np.linalg.lstsq(products / np.outer(norms, norms), wanted, rcond=1e-13)[0]
        found: NDArray[np.float64] = scaled / norms
        return found / found.sum()

    @property
    def error(self) -> float:
        """The distance of the two profiles in L2, over the length of the wanted one."""
        x = self.coefficients
        cross, length = dots(self.kept, [self.wanted])[:, 0], dots([self.wanted], [self.wanted])
        square = 1 + (x @ dots(self.kept, self.kept) @ x - 2 * x @ cross) / float(length[0, 0])
        return math.sqrt(max(0.0, float(square)))


def check_fit(fit: Fit, stored: str) -> None:
    """``UserError`` where ``fit`` is too far off; ``stored`` says what it is made of."""
    if fit.error <= WORST_FIT:
        return
    widths = ", ".join(f"{width:g}" for width in sorted({p.sigma_rel for p in fit.kept}))
    steps = counted(len({p.step for p in fit.kept}), "step")
    raise UserError(
        f"{WIDTH} {fit.wanted.sigma_rel:g} cannot be made of {stored}: {steps} of widths {widths} "
        f"fit its profile to within {fit.error:.1%} only (at most {WORST_FIT:.0%}): store nearer "
        f"widths, or more steps"
    )


@cache  # the members of a sweep have the same
def check_width_of(widths: tuple[float, ...], steps: int, every: int, sigma_rel: float) -> None:
    """``UserError`` unless a run that stores ``widths`` ``every`` so many steps gives this one."""
    stored = [*range(every, steps, every), steps] if every else [steps]
    if len(stored) > MOST_STEPS:
        kept = np.linspace(0, len(stored) - 1, MOST_STEPS).round().astype(int)
        stored = [stored[i] for i in kept]
    profiles = [Profile(step, width) for step in stored for width in widths]
    check_fit(Fit(profiles, Profile(steps, sigma_rel)), "training.posthoc_ema and posthoc_every")
