"""Distributions of training times, each (B,) for a batch shaped (B, ...)."""

import torch
from torch import Generator, Tensor

from fewstep.objectives.core.batch_math import rand, randn
from fewstep.objectives.core.paths import ProbabilityPath, TrigPath


def normal(like: Tensor, g: Generator, mean: float, std: float) -> Tensor:
    """(B,) numbers from N(mean, std^2)."""
    return mean + std * randn(like.flatten(1)[:, 0], g)


def logit_normal(like: Tensor, g: Generator, mean: float, std: float) -> Tensor:
    """Times in (0, 1) whose logit is normal (Esser et al. 2024, eq. 19)."""
    return normal(like, g, mean, std).sigmoid()


def logit_normal_below(bound: Tensor, u: Tensor, mean: float, std: float) -> Tensor:
    """Times whose logit is normal, and which are at most ``bound``; ``u``: uniform draws. (B,).

    By the inverse of the distribution function: F^-1(u F(bound)).
    """
    share = torch.special.ndtr((torch.logit(bound) - mean) / std)
    smallest = torch.finfo(u.dtype).tiny
    return (mean + std * torch.special.ndtri((u * share).clamp(min=smallest))).sigmoid()


def path_times(
    like: Tensor, g: Generator, path: ProbabilityPath, which: str, mean: float, std: float
) -> Tensor:
    """Times on ``path`` by a name in ``PATH_TIMES``: uniform, or of a log-normal noise level.

    On the linear path, the log of the noise level t / (1 - t) is logit(t).
    """
    if which == "uniform":
        return path.t_max * rand(like, g)
    if isinstance(path, TrigPath):
        return trig_times(like, g, path, mean, std)
    return logit_normal(like, g, mean, std)


PATH_TIMES = ("uniform", "logit_normal")


def trig_times(like: Tensor, g: Generator, path: TrigPath, mean: float, std: float) -> Tensor:
    """Times on TrigFlow whose noise level sigma_d tan(t) is log-normal (EDM's proposal)."""
    return (normal(like, g, mean, std).exp() / path.sigma_d).atan()
