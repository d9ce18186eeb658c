"""A network that computes a whole batch together with other processes.

Each process computes its share of the rows and receives the outputs of the others, so that the
caller (a loss, a sampler, guidance, a solver) sees the whole batch. The network must treat rows
independently, as batch normalisation does not.

Why gradients come out right. Every process holds the same loss L of all outputs F_1, ..., F_N, and
so the same dL/dF_i. ``Gather`` hands it back only to the rows computed here, so a process'
parameter gradient is the part of dL/dtheta that runs through its rows; the sum over processes is
the whole, no row twice. Where the inputs take gradients too (a loss through two calls), ``Scatter``
gathers those of all rows on the way back.
"""

import contextlib
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.experiments.distributed.process_group import Ranks
from fewstep.objectives import Net

# torch 2.13 calls it by another name and warns of the old one
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class RowShard:
    """The rows ``start``, ..., ``stop`` - 1 of ``rows``, this process' own.

    Shares differ by one row at most. A process without rows of its own computes another's (it has
    to take part in the gathering of sharded parameters), and ``kept`` is 0.
    """

    rows: int
    start: int
    stop: int
    kept: int

    @classmethod
    def of(cls, rows: int, ranks: Ranks) -> Self:
        base, extra = divmod(rows, ranks.size)
        start = ranks.rank * base + min(ranks.rank, extra)
        kept = base + (ranks.rank < extra)
        return cls(rows, start, start + kept, kept) if kept else cls(rows, 0, min(1, rows), 0)

    def take(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x[self.start : self.stop]


class _OfShard(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.shard, ctx.ranks = inputs


class Gather(_OfShard):
    """(kept, ...) here to (rows, ...) of all processes, in order; also of tangents."""

    @staticmethod
    def forward(part: Tensor, shard: RowShard, ranks: Ranks) -> Tensor:
        most = -(-shard.rows // ranks.size)
        padded = part.contiguous()
        if len(part) < most:  # the collective takes equal shares
            padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        gathered = part.new_empty(ranks.size * most, *part.shape[1:])
        all_gather(gathered, padded)
        fuller = shard.rows % ranks.size or ranks.size  # so many processes have a row more
        if fuller == ranks.size:
            return gathered
        rest = gathered[fuller * most :].unflatten(0, (-1, most))[:, : most - 1].flatten(0, 1)
        return torch.cat([gathered[: fuller * most], rest])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[ctx.shard.start :][: ctx.shard.kept], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return Gather.apply(tangent, ctx.shard, ctx.ranks)


class Scatter(_OfShard):
    """(rows, ...), the same in all processes, to this one's own rows."""

    @staticmethod
    def forward(x: Tensor, shard: RowShard, ranks: Ranks) -> Tensor:
        return x[shard.start : shard.stop].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return Gather.apply(gradient[: ctx.shard.kept], ctx.shard, ctx.ranks), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return Scatter.apply(tangent, ctx.shard, ctx.ranks)


class ShardedBatchNet:
    """``net``, computed by all of ``ranks`` together: a Net as any other.

    Dropout zeroes what it would have zeroed in one process: see ``WholeBatchDropout``.
    """

    def __init__(self, net: Net, ranks: Ranks) -> None:
        self.net, self.ranks = net, ranks
        self.module: Any = getattr(net, "_orig_mod", net)  # of a compiled one

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        shard = RowShard.of(len(x), self.ranks)
        x, t = Scatter.apply(x, shard, self.ranks), Scatter.apply(t, shard, self.ranks)
        d = None if d is None else Scatter.apply(d, shard, self.ranks)
        with self._dropout(shard):
            out = self.net(x, t, d, shard.take(y))
        return Gather.apply(out[: shard.kept], shard, self.ranks)

    @property
    def checkpointing(self) -> bool:
        """The network's own: whoever takes a tangent switches it off meanwhile."""
        return getattr(self.module, "checkpointing", False)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.module.checkpointing = value

    def _dropout(self, shard: RowShard) -> contextlib.AbstractContextManager[Any]:
        if not drops(self.module):
            return contextlib.nullcontext()
        if self.checkpointing:  # what the backward pass recomputes must drop the same
            self.module.context = lambda: (contextlib.nullcontext(), WholeBatchDropout(shard))
        return WholeBatchDropout(shard)


def drops(network: Any) -> bool:
    """Whether a call of ``network`` now would drop features."""
    if not isinstance(network, nn.Module) or not network.training:
        return False
    layers = (m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
    return any(layer.p > 0 for layer in layers)


DROPOUTS = (nnf.dropout, nnf.dropout1d, nnf.dropout2d, nnf.dropout3d)


class WholeBatchDropout(TorchFunctionMode):
    """Dropout draws the mask of the whole batch and uses its own rows of it.

    All processes draw from the same state, as one process would, and leave the same behind. The
    price is W times the random numbers, and for a moment the memory of W masks.
    """

    def __init__(self, shard: RowShard) -> None:
        super().__init__()
        self.shard = shard

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in DROPOUTS:
            return func(*args, **(kwargs or {}))
        h, *rest = args
        each, left = divmod(len(h), self.shard.stop - self.shard.start)  # rows of h a sample
        assert not left, f"{len(h)} rows of features for {self.shard}"
        ones = torch.ones(self.shard.rows * each, *h.shape[1:], dtype=h.dtype, device=h.device)
        mask = func(ones, *rest, **(kwargs or {}))
        return h * mask[self.shard.start * each : self.shard.stop * each]
