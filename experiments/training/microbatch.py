"""A batch in parts: gradient accumulation that every objective can have.

The loss is taken of the whole batch, so its draws, its targets and whatever it does across rows
(sorting, normalising, matching) are those without it; only the network is called with a part of the
rows at a time. What the backward pass needs of a part is not kept but computed again when it is its
turn, as gradient caching does (Gao et al. 2021). So the gradients are those of the whole batch, but
for rounding, the memory that of a part, and the price one more pass forward.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.experiments.distributed.batch_sharding import RowShard, WholeBatchDropout, drops
from fewstep.objectives import Net
from fewstep.objectives.core.batch_math import same_dropout


class MicrobatchedNet:
    """``net``, called with at most ``rows`` rows at a time: a Net as any other.

    ``checkpointing``: whether the backward pass computes parts again; whoever takes a tangent
    switches it off meanwhile (objectives/core/tangent.py).
    """

    def __init__(self, net: Net, rows: int) -> None:
        self.net: Any = net
        self.rows, self.checkpointing = rows, True

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if len(x) <= self.rows:
            whole: Tensor = self.net(x, t, d, y)
            return whole
        drawing, parts = _drops(self.net), []
        for start in range(0, len(x), self.rows):
            stop = min(start + self.rows, len(x))
            shard = RowShard(len(x), start, stop, stop - start)
            given = tuple(None if a is None else a[start:stop] for a in (x, t, d, y))
            # each part takes its rows of the same masks
            again = same_dropout(x) if drawing and stop < len(x) else contextlib.nullcontext()
            with again:
                parts.append(self._part(given, shard if drawing else None))
        return torch.cat(parts)

    def _part(self, given: tuple[Tensor | None, ...], shard: RowShard | None) -> Any:
        def masks() -> contextlib.AbstractContextManager[Any]:
            return contextlib.nullcontext() if shard is None else WholeBatchDropout(shard)

        if not (self.checkpointing and torch.is_grad_enabled()):
            with masks():
                return self.net(*given)
        return checkpoint(
            self.net, *given, use_reentrant=False, context_fn=lambda: (masks(), masks())
        )


def _drops(net: Any) -> bool:
    return drops(getattr(net, "module", getattr(net, "_orig_mod", net)))
