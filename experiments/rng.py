"""Random streams by name: a draw depends on (seed, purpose, index), never on those before it.

So a resumed run repeats the uninterrupted one bit by bit, and all objectives of one seed see the
same data order, noise and labels.
"""

import hashlib

import torch
from torch import Generator, Tensor


def derive(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed from a run's seed, a purpose and any further numbers."""
    text = "/".join(map(str, (seed, purpose, *index)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(
    seed: int, purpose: str, *index: int, device: torch.device | str = "cpu"
) -> Generator:
    """A fresh generator for ``derive(seed, purpose, *index)``."""
    return Generator(device).manual_seed(derive(seed, purpose, *index))


class Order:
    """The order in which a run sees its data: a new permutation each epoch, by position alone.

    ``batch(step)`` is the same whether the steps before it were run in this process or not.
    """

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self.seed, self.images, self.batch_size = seed, images, batch_size
        self._epochs: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """(batch_size,) int64 indices of the batch at ``step``, counted from 0."""
        start = step * self.batch_size
        position = torch.arange(start, start + self.batch_size)
        epochs = position // self.images
        self._epochs = {
            e: self._epochs[e] if e in self._epochs else self._permutation(e)
            for e in range(int(epochs[0]), int(epochs[-1]) + 1)
        }
        return torch.cat(
            [self._epochs[e][position[epochs == e] % self.images] for e in self._epochs]
        )

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
