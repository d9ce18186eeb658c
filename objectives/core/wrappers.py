"""Networks that wrap a network: one counts its calls, one splits its batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.objectives.core.base import Net

OnImages = Callable[[int], None]
"""(rows that the network was called with)"""


class CountedNet:
    """A network that counts its calls."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.calls = 0

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        self.calls += 1
        return self.net(x, t, d, y)


class BatchedNet:
    """A network called with at most ``batch_size`` rows at a time.

    The sampler above it sees all rows at once, so what it draws from its generator, and with it
    the result, does not depend on the batch size.
    """

    def __init__(
        self, net: Net, batch_size: int, on_images: OnImages = lambda images: None
    ) -> None:
        self.net, self.batch_size, self.on_images = net, batch_size, on_images

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        rows = torch.arange(len(x), device=x.device).tensor_split(-(-len(x) // self.batch_size))
        parts = []
        for i in rows:
            parts.append(
                self.net(x[i], t[i], None if d is None else d[i], None if y is None else y[i])
            )
            self.on_images(len(i))
        return torch.cat(parts)
