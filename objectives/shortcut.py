"""Shortcut models (Frans, Hafner, Levine & Abbeel 2024, eq. 4-5 and algorithm 1).

    x_{t-d} = x_t - d F(x_t, t, d)                       a jump of length d toward data
    d = 0:  F(x_t, t, 0) -> v = eps - x                  flow matching
    d > 0:  F(x_t, t, d) -> (s1 + s2) / 2                self-consistency, two halves make a whole:
            s1 = F(x_t, t, d/2),  x' = x_t - d/2 s1,  s2 = F(x', t - d/2, d/2)

The lengths are 1, 1/2, ..., 2/M with M = ``finest``, and t is a multiple of d, as in sampling with
1/d steps. A jump of 1/M, the smallest, is asked for as d = 0: flow matching trains it.
Their t is our 1 - t. (The paper prints s(x', t, d) in the second half; it must be t + d.)

The authors' code differs from the text, which is followed here: 1/8 of the rows, targets by the
EMA, clipped to +-4, flow rows at t in {0, 1/M, ...} and asked for as d = 1/M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_choice, check_range
from fewstep.objectives.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Progress,
    full,
    mean_square,
    rand,
    randint,
    randn,
)
from fewstep.objectives.paths import Linear, expand


@OBJECTIVES.register("shortcut")
@dataclass(frozen=True)
class Shortcut:
    """Flow matching plus self-consistency of jumps.

    Attributes:
        bootstrap_share: share of the batch's rows that train self-consistency.
        finest: M, a power of two; sampling with M steps is flow matching.
        target: ema | online, the network that makes the two half jumps.
        clip: bound on |x'| and on |target|, or None (the authors' code: 4).
    """

    bootstrap_share: float = 0.25
    finest: int = 128
    target: str = "ema"
    clip: float | None = None

    title: ClassVar[str] = "Shortcut"
    uses_jump: ClassVar[bool] = True
    path: ClassVar[Linear] = Linear()

    def __post_init__(self) -> None:
        check_range("objective.bootstrap_share", self.bootstrap_share, 0, 1)
        check_choice("objective.target", self.target, ("ema", "online"))
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise UserError(f"objective.finest must be a power of two >= 2, got {self.finest}")
        if self.clip is not None:
            check_range("objective.clip", self.clip, 0, open_low=True)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, eps = rand(x, g), randn(x, g)
        d = torch.zeros_like(t)
        n = math.ceil(self.bootstrap_share * len(x))  # the first n rows train jumps
        levels = self.finest.bit_length() - 1  # d = 2^-k, k = 0, ..., levels - 1
        parts = 2 ** (torch.arange(n, device=x.device) % levels)  # 1/d, row by row in turn
        d[:n] = 1 / parts
        t[:n] = randint(1, parts + 1, g) * d[:n]

        x_t = self.path.mix(x, eps, t)
        target = self.path.velocity(x, eps, t)
        if n:
            labels = None if y is None else y[:n]
            target[:n] = self._two_halves(nets, x_t[:n], t[:n], d[:n], labels)
        per_sample = mean_square(nets.online(x_t, t, d, y) - target)
        logs = {"loss_flow": per_sample[n:].detach().mean()} if n < len(x) else {}
        if n:
            logs["loss_bootstrap"] = per_sample[:n].detach().mean()
        return Loss(per_sample, t, logs)

    @torch.no_grad()
    def _two_halves(
        self, nets: Nets, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None
    ) -> Tensor:
        F = nets.ema if self.target == "ema" else nets.online
        half = d / 2
        asked = self._asked(half)
        s1 = F(x_t, t, asked, y)
        s2 = F(self._clipped(x_t - expand(half, x_t) * s1), t - half, asked, y)
        return self._clipped((s1 + s2) / 2)

    def _asked(self, d: Tensor) -> Tensor:
        """The jump length as the network is asked for it: the smallest is flow matching's 0."""
        return torch.where(d <= 1 / self.finest, torch.zeros_like(d), d)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def sample(
        self, net: Net, noise: Tensor, y: Tensor | None, times: Sequence[float], g: Generator
    ) -> Tensor:
        x = noise
        for t, u in pairwise(times):
            d = full(t - u, x)
            x = x - (t - u) * net(x, full(t, x), self._asked(d), y)
        return x

    def learned_parts(self) -> None:
        return None
