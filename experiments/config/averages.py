"""The averages of a run's weights: which ones training keeps, and which ones are evaluated.

By name, as in tables and files: ``ema``, the first of ``training.ema``, whose other decays are
``ema-0.9999`` and so on; ``sigma_rel-0.1``, a power-function average, which is kept
(``training.posthoc_ema``) or made afterwards of those that are (training/posthoc_ema.py); and
``raw``, no average.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fewstep.errors import UserError, check_range, unknown

EMA, RAW, WIDTH = "ema", "raw", "sigma_rel"
WIDEST = math.sqrt(1 / 12)  # of gamma = 0, the mean of all steps
CHOICES = (EMA, RAW, "{ema: DECAY}", "{sigma_rel: WIDTH}")


@dataclass(frozen=True)
class Exponential:
    """An exponential average; with ``warmup`` its decay grows as (1 + step) / (10 + step)."""

    name: str
    decay: float
    warmup: bool = True

    def factor(self, step: int) -> float:
        """What remains of the average at update number ``step``, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


@dataclass(frozen=True)
class Power:
    """The average after i updates, with weights proportional to i^gamma (Karras et al. 2024, 3.1).

    ``sigma_rel``: the standard deviation of that profile, as a share of the training so far.
    """

    sigma_rel: float

    @property
    def name(self) -> str:
        return f"{WIDTH}-{self.sigma_rel!r}"

    def factor(self, step: int) -> float:
        """What remains of the average at update number ``step``, counted from 0 (appendix C.1)."""
        return float((1 - 1 / (step + 1)) ** (gamma(self.sigma_rel) + 1))


Average = Exponential | Power


@cache
def gamma(sigma_rel: float) -> float:
    """The exponent of the profile of a width: sigma_rel^2 = (g + 1) / ((g + 2)^2 (g + 3))."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def check_width(setting: str, width: float) -> None:
    """``UserError`` for a sigma_rel that is not between 0 and ``WIDEST``."""
    if not 0 < width <= WIDEST:
        raise UserError(
            f"{setting} takes sigma_rel above 0 and at most {WIDEST:.4f}, got {width!r}"
        )


def decays(ema: Any) -> list[float]:
    """``training.ema``, a decay or several, as a list; ``UserError`` for anything else."""
    several = list(ema) if isinstance(ema, list | tuple) else [ema]
    for decay in several:
        if isinstance(decay, bool) or not isinstance(decay, int | float):
            raise UserError(f"training.ema takes a decay or a list of decays, got {ema!r}")
        check_range("training.ema", decay, 0, 1)
        if decay == 1:
            raise UserError("training.ema must be less than 1 (at 1 an average never changes)")
    if not several or len(set(several)) < len(several):
        raise UserError(f"training.ema takes one decay or several different ones, got {ema!r}")
    return [float(decay) for decay in several]


def exponential(ema: Any, warmup: bool) -> list[Exponential]:
    """Those of ``training.ema``."""
    first, *others = decays(ema)
    named = [(EMA, first), *((f"{EMA}-{decay!r}", decay) for decay in others)]
    return [Exponential(name, decay, warmup) for name, decay in named]


def weights_name(setting: str, value: Any) -> str:
    """The name of weights that are given by name or as ``{ema: DECAY}``, ``{sigma_rel: WIDTH}``."""
    if isinstance(value, str):
        if value in (EMA, RAW):
            return value
        if (match := re.fullmatch(rf"({EMA}|{WIDTH})-([0-9.e-]+)", value)) is None:
            raise unknown(setting, value, (EMA, RAW, f"{EMA}-DECAY", f"{WIDTH}-WIDTH"))
        value = {match[1]: match[2]}
    if not isinstance(value, dict) or len(value) != 1 or not {*value} <= {EMA, WIDTH}:
        raise UserError(f"{setting} takes {', '.join(CHOICES)}, got {value!r}")
    [(kind, number)] = value.items()
    try:
        number = float(number)
    except (TypeError, ValueError):
        raise UserError(f"{setting}: {kind} takes a number, got {number!r}") from None
    if kind == WIDTH:
        check_width(setting, number)
    return f"{kind}-{number!r}"


def evaluated(setting: str, weights: Sequence[Any], ema: Any, posthoc_ema: Any) -> list[str]:
    """The names of what ``weights`` ask of a run with these averages: ema is each of ``ema``.

    ``UserError`` for weights that the run does not keep.
    """
    kept = exponential(ema, True)
    names = {EMA: [average.name for average in kept]}
    names |= {f"{EMA}-{average.decay!r}": [average.name] for average in kept}
    asked: list[str] = []
    for name in (weights_name(setting, value) for value in weights):
        if name.startswith(WIDTH) and not posthoc_ema:
            raise UserError(
                f"{setting} {name} is made of averages that the run does not keep: "
                f"training.posthoc_ema is []"
            )
        if name.startswith(EMA) and name not in names:
            choices = ", ".join(repr(average.decay) for average in kept)
            decay = name.partition("-")[2]
            raise UserError(
                f"{setting}: no average of decay {decay} is kept (training.ema: {choices})"
            )
        asked += names.get(name, [name])
    return list(dict.fromkeys(asked))
