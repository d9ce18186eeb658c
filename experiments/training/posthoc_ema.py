"""Post-hoc EMA (Karras et al. 2024, section 3.2): any width of averaging, after the training.

::

    averages/step-00000500.safetensors    the averages of training.posthoc_ema after 500 updates

An average is an integral of the weights over the steps, with a profile p(s) = (g + 1) s^g / t^(g+1)
up to its step t. The profile of another width is fitted by those of all stored averages, in least
squares, and the same combination of the stored averages is its average of the weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import UserError, counted
from fewstep.experiments.config.averages import WIDTH, gamma
from fewstep.files import replacing

WORST_FIT = 0.05  # of a profile, in L2: beyond it, another average would be shown in its place


def store(folder: Path, step: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the parameters of ``averages``, by name, as they are after ``step`` updates."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{name}/{parameter}": tensor.detach().cpu().contiguous()
        for name, parameters in averages.items()
        for parameter, tensor in parameters.items()
    }
    with replacing(folder / f"step-{step:08d}.safetensors") as other:
        save_file(tensors, other)


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


def reconstruct(folder: Path, sigma_rel: float, step: int) -> dict[str, Tensor]:
    """The parameters averaged with width ``sigma_rel`` up to ``step``, from what is in ``folder``.

    ``UserError`` where the stored averages lack the last step, or give no such profile.
    """
    files = {
        int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.safetensors")
    }
    files = {at: path for at, path in sorted(files.items()) if at <= step}
    if step not in files:
        raise UserError(f"no averages of step {step} in {folder}: they were removed, train anew")
    kept = [Profile(at, width) for at, path in files.items() for width in _widths(path)]
    fit = Fit(kept, Profile(step, sigma_rel))
    if fit.error > WORST_FIT:
        widths = ", ".join(f"{width:g}" for width in sorted({p.sigma_rel for p in kept}))
        raise UserError(
            f"{WIDTH} {sigma_rel:g} cannot be made of what is stored in {folder}: "
            f"{counted(len(files), 'step')} of widths {widths} fit its profile to within "
            f"{fit.error:.0%} only (at most {WORST_FIT:.0%}): store nearer widths, or more steps"
        )
    total: dict[str, Tensor] = {}
    for profile, coefficient in zip(kept, fit.coefficients, strict=True):
        for name, tensor in _average(files[profile.step], profile.sigma_rel).items():
            added = tensor.double() * float(coefficient)
            total[name] = total[name] + added if name in total else added
    dtypes = {
        name: tensor.dtype for name, tensor in _average(files[step], kept[-1].sigma_rel).items()
    }
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


def _widths(path: Path) -> list[float]:
    with _opened(path) as file:
        names = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    return sorted(float(name.removeprefix(f"{WIDTH}-")) for name in names)


def _average(path: Path, sigma_rel: float) -> dict[str, Tensor]:
    start = f"{WIDTH}-{sigma_rel!r}/"
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118
        return {name.removeprefix(start): file.get_tensor(name) for name in names}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): remove the run and train it anew") from None
