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


class ClassOrder:
    """An ``Order`` whose batches are made of blocks of ``size`` rows of one class each.

    Each class is drawn with its frequency: over E epochs its rows come E times each, but for less
    than a block. They come in permutations of their own, one after the other, so that a block may
    begin in one and end in the next; which class comes when is drawn anew for each epoch. All by
    position alone. A class smaller than a block has rows twice in it.

    After the explicit shortcut models' loader (github.com/EDAPINENUT/ExplicitShortCut,
    datasets/dataset_lc.py, SameLabelBatchSampler). There each process has batches of one class,
    all classes are drawn equally often, and an image may be left out for long: a class starts again
    from its beginning, unshuffled, when less than 32 of its images are left.
    """

    def __init__(self, seed: int, labels: Tensor, batch_size: int, size: int) -> None:
        """``labels``: (images,) int64 classes; ``size`` must divide ``batch_size``."""
        assert batch_size % size == 0, f"blocks of {size} in batches of {batch_size}"
        self.seed, self.size, self.blocks = seed, size, batch_size // size
        classes, self.counts = labels.unique(return_counts=True)
        self._rows = labels.argsort(stable=True).split(self.counts.tolist())
        self._orders = [
            Order(derive(seed, "class", int(c)), int(n), size)
            for c, n in zip(classes, self.counts, strict=True)
        ]
        # where in a block the first epoch of each class ends: else all would end late together
        g = generator(seed, "class/offset")
        self._offsets = torch.randint(size, (len(classes),), generator=g)
        self._epoch: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """(batch_size,) int64 indices of the batch at ``step``, counted from 0."""
        first = step * self.blocks
        return torch.cat([self._block(n) for n in range(first, first + self.blocks)])

    def _block(self, n: int) -> Tensor:
        epoch = n * self.size // int(self.counts.sum())
        while int(self._before(epoch).sum()) > n:
            epoch -= 1
        while int(self._before(epoch + 1).sum()) <= n:
            epoch += 1
        which, i = self._blocks_of(epoch)[n - int(self._before(epoch).sum())].tolist()
        return self._rows[which][self._orders[which].batch(i)]

    def _before(self, epoch: int) -> Tensor:
        """(classes,) blocks of each class before ``epoch``."""
        return (epoch * self.counts + self._offsets) // self.size

    def _blocks_of(self, epoch: int) -> Tensor:
        """(blocks, 2) the class of each block of ``epoch``, and its number among that class."""
        if self._epoch is None or self._epoch[0] != epoch:
            before, after = self._before(epoch), self._before(epoch + 1)
            which = torch.arange(len(before)).repeat_interleave(after - before)
            begun = (after - before).cumsum(0) - (after - before)
            place = torch.arange(len(which)) - begun[which] + before[which]
            g = generator(self.seed, "class/order", epoch)
            blocks = torch.stack([which, place], 1)[torch.randperm(len(which), generator=g)]
            self._epoch = epoch, blocks
        return self._epoch[1]
