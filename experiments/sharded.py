"""A network that is asked for a whole batch, and computes it together with other processes.

Each process computes its share of the rows and is handed the others' outputs, so that whoever asks
(a loss, a sampler, guidance, a solver) sees the whole batch and need not know. With N rows of D
numbers, P parameters and W processes, a process sends N D / W numbers a call, and as many again
for a tangent; the gradients that data-parallel training sums, 2 P (W - 1) / W, are far more.

Why gradients come out right. Every process holds the same loss L of all outputs F_1, ..., F_N, and
so the same dL/dF_i. ``Gather`` hands it back only to the rows computed here, so a process'
parameter gradient is the part of dL/dtheta that runs through its rows; the sum over processes is
the whole, no row twice. Where the inputs take gradients too (a loss through two calls), ``Scatter``
gathers those of all rows on the way back.

A network must treat its rows apart from each other, as all ours do; batch normalisation does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.experiments.distributed import Ranks
from fewstep.objectives import Net

# torch 2.13 calls it by another name and warns of the old one
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Share:
    """The rows ``start``, ..., ``stop`` - 1 of ``rows``, this process' own.

    Shares differ by one row at most. None may be empty: a process may have to take part (in the
    gathering of sharded parameters, say), so one without rows of its own computes another's, and
    ``kept`` is 0.
    """

    rows: int
    start: int
    stop: int
    kept: int

    @classmethod
    def of(cls, rows: int, ranks: Ranks) -> Share:
        base, extra = divmod(rows, ranks.size)
        start = ranks.rank * base + min(ranks.rank, extra)
        kept = base + (ranks.rank < extra)
        return cls(rows, start, start + kept, kept) if kept else cls(rows, 0, min(1, rows), 0)

    def take(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x[self.start : self.stop]


class Gather(torch.autograd.Function):
    """(kept, ...) here to (rows, ...) of all processes, in order; also of tangents."""

    @staticmethod
    def forward(part: Tensor, share: Share, ranks: Ranks) -> Tensor:
        most = -(-share.rows // ranks.size)
        padded = part.contiguous()
        if len(part) < most:  # the collective takes equal shares
            padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        gathered = part.new_empty(ranks.size * most, *part.shape[1:])
        all_gather(gathered, padded)
        fuller = share.rows % ranks.size or ranks.size  # so many processes have a row more
        if fuller == ranks.size:
            return gathered
        rest = gathered[fuller * most :].unflatten(0, (-1, most))[:, : most - 1].flatten(0, 1)
        return torch.cat([gathered[: fuller * most], rest])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.share, ctx.ranks = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[ctx.share.start :][: ctx.share.kept], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return Gather.apply(tangent, ctx.share, ctx.ranks)


class Scatter(torch.autograd.Function):
    """(rows, ...), the same in all processes, to this one's own rows."""

    @staticmethod
    def forward(x: Tensor, share: Share, ranks: Ranks) -> Tensor:
        return x[share.start : share.stop].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.share, ctx.ranks = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return Gather.apply(gradient[: ctx.share.kept], ctx.share, ctx.ranks), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return Scatter.apply(tangent, ctx.share, ctx.ranks)


class Sharded:
    """``net``, computed by all of ``ranks`` together: a Net as any other.

    Dropout zeroes what it would have zeroed in one process: see ``WholeBatchDropout``.
    """

    def __init__(self, net: Net, ranks: Ranks) -> None:
        self.net, self.ranks = net, ranks
        self.module: Any = getattr(net, "_orig_mod", net)  # of a compiled one

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        share = Share.of(len(x), self.ranks)
        x, t = Scatter.apply(x, share, self.ranks), Scatter.apply(t, share, self.ranks)
        d = None if d is None else Scatter.apply(d, share, self.ranks)
        with self._dropout(share):
            out = self.net(x, t, d, share.take(y))
        return Gather.apply(out[: share.kept], share, self.ranks)

    @property
    def checkpointing(self) -> bool:
        """The network's own: whoever takes a tangent switches it off meanwhile."""
        return getattr(self.module, "checkpointing", False)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.module.checkpointing = value

    def _dropout(self, share: Share) -> contextlib.AbstractContextManager[Any]:
        if not drops(self.module):
            return contextlib.nullcontext()
        if self.checkpointing:  # what the backward pass recomputes must drop the same
            self.module.context = lambda: (contextlib.nullcontext(), WholeBatchDropout(share))
        return WholeBatchDropout(share)


def drops(network: Any) -> bool:
    """Whether a call of ``network`` now would drop features."""
    if not isinstance(network, nn.Module) or not network.training:
        return False
    layers = (m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
    return any(layer.p > 0 for layer in layers)


DROPOUTS: tuple[Callable[..., Tensor], ...] = (
    nnf.dropout,
    nnf.dropout1d,
    nnf.dropout2d,
    nnf.dropout3d,
)


class WholeBatchDropout(TorchFunctionMode):
    """Dropout draws the mask of the whole batch and uses its own rows of it.

    All processes draw from the same state, as one process would, and leave the same behind. The
    price is W times the random numbers, and for a moment the memory of W masks.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in DROPOUTS:
            return func(*args, **(kwargs or {}))
        h, *rest = args
        each, left = divmod(len(h), self.share.stop - self.share.start)  # rows of h a sample
        assert not left, f"{len(h)} rows of features for {self.share}"
        ones = torch.ones(self.share.rows * each, *h.shape[1:], dtype=h.dtype, device=h.device)
        mask = func(ones, *rest, **(kwargs or {}))
        return h * mask[self.share.start * each : self.share.stop * each]
