"""How the learning rate falls: the share of its peak at an update, by the schedule's name.

``step`` counts updates from 0, of ``total``; ``start``: at which of them it begins to fall.
"""

import math
from collections.abc import Callable


def _done(step: int, start: int, total: int) -> float:
    return max(0, step - start) / max(1, total - start)


def constant(step: int, start: int, total: int) -> float:
    """The peak throughout."""
    return 1.0


def cosine(step: int, start: int, total: int) -> float:
    """Half a cosine, from 1 at ``start`` to 0 at ``total`` (Loshchilov & Hutter 2017)."""
    return (1 + math.cos(math.pi * _done(step, start, total))) / 2


def linear(step: int, start: int, total: int) -> float:
    """A straight line, from 1 at ``start`` to 0 at ``total``."""
    return 1 - _done(step, start, total)


def inverse_sqrt(step: int, start: int, total: int) -> float:
    """1 / sqrt(max(t / t_ref, 1)), t_ref = ``start`` (EDM2, Karras et al. 2024).

    Their code counts images and gives t_ref in batches (70,000 for ImageNet-512), which are steps.
    """
    return 1 / math.sqrt(max(step / start, 1))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
}
