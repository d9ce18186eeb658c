"""What a network is conditioned on: time t, jump length d, class y, each as a (B, width) vector.

All of it is computed in float32, and time enters unscaled by default: consistency objectives take
the derivative with respect to t through this embedding, and a factor of 1000 before the sinusoids
was measured to put a bf16 tangent 126% off (0.7% without).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones.base import ConditioningSettings

SMALLEST_JUMP = 2.0**-10
FOURIER_SEED = 75  # of all networks: a run's seed does not choose its embedding


class SinusoidalEmbedding(nn.Module):
    """(B,) -> (B, features): cosines and sines, frequencies from ``highest`` down by 10^4."""

    frequencies: Tensor

    def __init__(self, features: int, highest: float) -> None:
        super().__init__()
        # the same bits everywhere; and on the meta device torch's arange imports its compiler
        with torch.device("cpu"):
            exponent = torch.arange(features // 2) / (features // 2)
            frequencies = highest * torch.exp(-math.log(10_000) * exponent)
        frequencies = frequencies.to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """(B,) -> (B, features): sqrt(2) cos(2 pi (f t + p)) (Karras et al. 2024, eq. 75).

    f ~ N(0, scale^2) and p ~ U(0, 1) are drawn once, on the CPU, by a generator of their own, and
    never trained. They are in the checkpoint, because no torch promises its generator to the next.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        g = torch.Generator("cpu").manual_seed(FOURIER_SEED)
        f = torch.randn(features, generator=g, device="cpu") * scale
        p = torch.rand(features, generator=g, device="cpu")
        device = torch.get_default_device()
        self.register_buffer("frequencies", (2 * math.pi * f).to(device))
        self.register_buffer("phases", (2 * math.pi * p).to(device))

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies.to(t.dtype) + self.phases.to(t.dtype)
        return math.sqrt(2) * phase.cos()


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast inside; tensors without numbers, on the meta device, know none."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


Conditions = tuple[int, bool, int]
"""What a network is conditioned on beside t: number of classes, whether d, size of vectors."""


class ConditionEmbedding(nn.Module):
    """The sum of the embeddings of t, d and y: (B,), (B,) or None, condition -> (B, width).

    y is (B,) classes, (B, k) vectors, of which NaN stands for "none", or None for that in all rows.
    Vectors are projected linearly; instead of one that is missing a learned vector is added.
    d is embedded by log2(1/d), as in the shortcut models' code, from 0 (the whole path) to 10
    (2^-10 and below, 0 included), or as t is (``jump_embedding=linear``).
    """

    def __init__(self, settings: ConditioningSettings, width: int, conditions: Conditions) -> None:
        super().__init__()
        num_classes, jump, condition_dim = conditions
        features, self.width = settings.time_features, width
        self.log2 = settings.jump_embedding == "log2"
        self.time = nn.Sequential(_embedding(settings), *_mlp(features, width))
        self.jump: nn.Module | None = None
        if jump:
            first = SinusoidalEmbedding(features, 1.0) if self.log2 else _embedding(settings)
            self.jump = nn.Sequential(first, *_mlp(features, width))
        # one class more than the data has: the label that stands for none
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight)
        self.vector = nn.Linear(condition_dim, width) if condition_dim else None
        if self.vector is not None:
            nn.init.normal_(self.vector.weight, std=condition_dim**-0.5)
            nn.init.zeros_(self.vector.bias)
            self.no_vector = nn.Parameter(torch.zeros(width))
        self.augmentation: nn.Linear | None = None

    def add_augmentation(self, labels: int) -> None:
        """Take (B, 1 + labels) for y, too: a class, and what was done to the image, 0 for nothing.

        y as before stands for images to which nothing was done.
        """
        width = self.width
        self.augmentation = nn.Linear(labels, width, bias=False)
        nn.init.normal_(self.augmentation.weight, std=labels**-0.5)

    @torch.no_grad()
    def silence_jump(self) -> None:
        """Have d add 0 until it is trained, and let gradients reach all its weights.

        Pairs of hidden units, alike at first, cancel: the doubling trick of Chizat, Oyallon & Bach
        2019.
        """
        assert isinstance(self.jump, nn.Sequential)
        first, last = (m for m in self.jump if isinstance(m, nn.Linear))
        half = first.out_features // 2
        for of_unit in (first.weight, first.bias):
            of_unit[half : 2 * half] = of_unit[:half]
        last.weight[:, half : 2 * half] = -last.weight[:, :half]
        last.weight[:, 2 * half :] = 0
        last.bias.zero_()

    def forward(self, t: Tensor, d: Tensor | None, y: Tensor | None) -> Tensor:
        with in_float32(t.device):
            c: Tensor = self.time(t)
            if self.augmentation is not None and y is not None and y.ndim == 2:
                c = c + self.augmentation(y[:, 1:].to(t.dtype))
                y = None if self.label is None else y[:, 0].long()
            if self.jump is not None:
                if d is None:
                    raise ValueError("this network was built with a jump length, got d=None")
                c = c + self.jump(-d.clamp(min=SMALLEST_JUMP).log2() if self.log2 else d)
            elif d is not None:
                raise ValueError("this network was built without a jump length, got a d")
            if self.label is not None:
                none = torch.full_like(t, self.label.num_embeddings - 1, dtype=torch.int64)
                c = c + self.label(none if y is None else y)
            if self.vector is not None:
                if y is None:
                    return c + self.no_vector
                missing = y.isnan().any(1, keepdim=True)
                projected = self.vector(y.masked_fill(missing, 0).to(t.dtype))
                c = c + torch.where(missing, self.no_vector, projected)
        return c


def _embedding(settings: ConditioningSettings) -> nn.Module:
    kind = FourierEmbedding if settings.time_embedding == "fourier" else SinusoidalEmbedding
    return kind(settings.time_features, settings.time_frequency)


def _mlp(features: int, width: int) -> tuple[nn.Module, ...]:
    first, last = nn.Linear(features, width), nn.Linear(width, width)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return first, nn.SiLU(), last
