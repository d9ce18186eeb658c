"""A backbone: a plain MLP on the concatenation of x, t, d and y."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fewstep.errors import UserError, check_range


@dataclass(frozen=True)
class PlainMLP:
    """A plain MLP for vectors, without residual connections and adaptive normalisation."""

    width: int = 128
    depth: int = 3

    def __post_init__(self) -> None:
        check_range("backbone.width", self.width, 1)
        check_range("backbone.depth", self.depth, 1)

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        """The network for data of ``shape``; ``jump``: whether it gets a jump length d.

        Conditions are one of ``num_classes`` classes, or vectors of ``condition_dim`` numbers.
        """
        if condition_dim:
            raise UserError(
                f"backbone plain_mlp takes class labels only, got condition vectors of "
                f"{condition_dim} numbers: use backbone=mlp"
            )
        if len(shape) != 1:
            raise UserError(f"backbone plain_mlp needs vectors (D,), got data of shape {shape}")
        return PlainNetwork(self, shape[0], num_classes)


class PlainNetwork(nn.Module):
    """F(x, t, d, y) on x: (B, D); class ``num_classes`` stands for "no label"."""

    def __init__(self, settings: PlainMLP, dimension: int, num_classes: int) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes + 1, 8) if num_classes else None
        widths = [dimension + 2 + (8 if num_classes else 0)] + settings.depth * [settings.width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dimension))

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """x: (B, D), t and d: (B,), y: (B,) or None."""
        parts = [x, t[:, None], (torch.zeros_like(t) if d is None else d)[:, None]]
        if self.labels is not None:
            none = torch.full(t.shape, self.labels.num_embeddings - 1, device=t.device)
            parts.append(self.labels(none if y is None else y))
        return self.layers(torch.cat([part.to(x.dtype) for part in parts], dim=1))
