"""Shortcut models (Frans, Hafner, Levine & Abbeel 2024, eq. 4-5 and algorithm 1).

    x_{t-d} = x_t - d F(x_t, t, d)                       a jump of length d toward data
    d = 0:  F(x_t, t, 0) -> v = eps - x                  flow matching
    d > 0:  F(x_t, t, d) -> (s1 + s2) / 2                self-consistency, two halves make a whole:
            s1 = F(x_t, t, d/2),  x' = x_t - d/2 s1,  s2 = F(x', t - d/2, d/2)

The lengths are 1, 1/2, ..., 2/M with M = ``finest``, and t is a multiple of d, as in sampling with
1/d steps. For a jump of 1/M, the smallest, the network gets d = 0: flow matching trains it.
Their t is our 1 - t. (The paper prints s(x', t, d) in the second half; it must be t + d.)

The authors' code differs from the text. ``shortcut`` and ``shortcut_paper`` follow the text,
``shortcut_kvfrans`` the code (github.com/kvfrans/shortcut-models, targets_shortcut.py), switch by
switch:

======================  ==================  ==========================================
switch                  text                code
======================  ==================  ==========================================
``bootstrap_share``     1/4                 1/8
``lengths``             in_turn             grouped: equal shares, the rest to d = 1
``dt_bias``             False               False (a flag: half of the rows to d = 1/2, 1)
``flow_times``          continuous          grid: t in {1/M, 2/M, ..., 1}
``finest_as``           zero                own: for 1/M it gets d = 1/M
``clip``                None                4, of x' and of the target
``bootstrap_guidance``  1 (none)            1.5, on the rows with d = 2/M (a flag, off for CelebA)
``sigma_min``           0                   1e-5
======================  ==================  ==========================================

Both take targets from the EMA and never drop the labels of bootstrap rows. The code drops 1/10 of
the others' (``training.label_dropout=0.1``), which guidance needs. The text draws the lengths.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_choice, check_range
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress, check_target
from fewstep.objectives.core.batch_math import mean_square, rand, randint, randn
from fewstep.objectives.core.paths import LinearPath
from fewstep.registry import added


@OBJECTIVES.register("shortcut")
@dataclass(frozen=True)
class Shortcut(AverageVelocity):
    """Flow matching plus self-consistency of jumps.

    Attributes:
        bootstrap_share: share of the batch's rows that train self-consistency.
        finest: M, a power of two; sampling with M steps is flow matching.
        target: ema | online, the network that makes the two half jumps. target_decay: of that
            average, whatever is evaluated; None for the same.
        lengths: in_turn | grouped, how the bootstrap rows share the lengths: one after the other,
            going on where the step before stopped, or as the code does, in equal groups a step.
        dt_bias: with grouped lengths, give 1/4 + 1/4 of the bootstrap rows to d = 1/2 and d = 1.
        flow_times: continuous | grid, where flow matching is trained.
        finest_as: zero | own, the d of jumps of 1/M and of flow matching.
        clip: bound on |x'| and on |target|, or None.
        bootstrap_guidance: guidance scale of both half jumps where d = 2/M; 1 for none.
        sigma_min: noise left in the data.
    """

    bootstrap_share: float = 0.25
    finest: int = 128
    target: str = "ema"
    lengths: str = "in_turn"
    dt_bias: bool = False
    flow_times: str = "continuous"
    finest_as: str = "zero"
    clip: float | None = None
    bootstrap_guidance: float = 1.0
    sigma_min: float = 0.0
    target_decay: float | None = added(None)

    title: ClassVar[str] = "Shortcut"

    def __post_init__(self) -> None:
        check_range("objective.bootstrap_share", self.bootstrap_share, 0, 1)
        check_target(self)
        check_choice("objective.lengths", self.lengths, ("in_turn", "grouped"))
        check_choice("objective.flow_times", self.flow_times, ("continuous", "grid"))
        check_choice("objective.finest_as", self.finest_as, ("zero", "own"))
        check_range("objective.bootstrap_guidance", self.bootstrap_guidance, 0)
        check_range("objective.sigma_min", self.sigma_min, 0, 0.1)
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise UserError(f"objective.finest must be a power of two >= 2, got {self.finest}")
        if self.clip is not None:
            check_range("objective.clip", self.clip, 0, open_low=True)
        if self.dt_bias and self.lengths != "grouped":
            raise UserError(
                f"objective.dt_bias needs objective.lengths=grouped, got {self.lengths}"
            )

    @property
    def path(self) -> LinearPath:
        return LinearPath(self.sigma_min)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, eps = rand(x, g), randn(x, g)
        if self.flow_times == "grid":
            t = 1 - (t * self.finest).floor() / self.finest
        parts = self._parts(len(x), progress, x.device)  # the first rows train jumps
        n = len(parts)
        d = torch.zeros_like(t)
        d[:n] = 1 / parts
        t[:n] = randint(1, parts + 1, g) * d[:n]

        x_t = self.path.mix(x, eps, t)
        target = self.path.velocity(x, eps, t)
        if n:
            kept = None if batch.undropped_y is None else batch.undropped_y[:n]
            target[:n] = self.two_halves(nets.target_net(self.target), x_t[:n], t[:n], d[:n], kept)
            y = None if y is None or kept is None else torch.cat([kept, y[n:]])
        per_sample = mean_square(nets.online(x_t, t, self.network_d(d), y) - target)
        logs = {"loss_flow": per_sample[n:].detach().mean()} if n < len(x) else {}
        if n:
            logs["loss_bootstrap"] = per_sample[:n].detach().mean()
        return Loss(per_sample, t, logs, d)

    def _parts(self, rows: int, progress: Progress, device: torch.device) -> Tensor:
        """1/d of each bootstrap row: powers of two from 1 to M/2."""
        levels = self.finest.bit_length() - 1  # d = 2^-k, k = 0, ..., levels - 1
        if self.lengths == "in_turn":
            n = math.ceil(self.bootstrap_share * rows)
            turn = progress.step if progress.turn is None else progress.turn
            return 2 ** ((torch.arange(n, device=device) + n * turn) % levels)
        n = int(self.bootstrap_share * rows)
        finest_first = torch.arange(levels - 1, -1, -1, device=device)
        if self.dt_bias:
            each, quarter = n // 2 // levels, n // 4
            k = finest_first[:-2].repeat_interleave(each)
            k = torch.cat([k, torch.ones(quarter, dtype=k.dtype, device=device)])
        else:
            k = finest_first.repeat_interleave(n // levels)
        return 2 ** torch.cat([k, k.new_zeros(n - len(k))])

    def half_jump(self, F: Net, x: Tensor, t: Tensor, half: Tensor, y: Tensor | None) -> Tensor:
        s = super().half_jump(F, x, t, half, y)
        rows = half <= 1 / self.finest
        if self.bootstrap_guidance == 1 or y is None or not bool(rows.any()):
            return s
        none = super().half_jump(F, x[rows], t[rows], half[rows], None)
        s = s.clone()
        s[rows] = none + self.bootstrap_guidance * (s[rows] - none)
        return s

    def network_d(self, d: Tensor) -> Tensor:
        """The jump length as the network is given it: the smallest is flow matching's."""
        flow = 0.0 if self.finest_as == "zero" else 1 / self.finest
        return torch.where(d <= 1 / self.finest, torch.full_like(d, flow), d)

    def clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    @property
    def uses_guidance(self) -> bool:
        return self.bootstrap_guidance != 1

    def step_cost(self) -> float:
        return (3 + 2 * self.bootstrap_share) / 3


OBJECTIVES.add("shortcut_paper", Shortcut())
OBJECTIVES.add("shortcut_kvfrans", Shortcut(
    bootstrap_share=1 / 8, lengths="grouped", flow_times="grid", finest_as="own", clip=4.0,
    bootstrap_guidance=1.5, sigma_min=1e-5,
))  # fmt: skip
