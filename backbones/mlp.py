"""A residual MLP with adaLN-zero conditioning, for vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as nnf
from torch import Tensor, nn

from fewstep.backbones.base import BACKBONES
from fewstep.backbones.embeddings import Condition
from fewstep.errors import UserError, check_range


@BACKBONES.register("mlp")
@dataclass(frozen=True)
class MLP:
    """Settings of a residual MLP.

    Attributes:
        width: features of a hidden layer. depth: number of residual blocks.
        time_frequency: highest frequency of the time embedding; 1 leaves time unscaled.
    """

    width: int = 256
    depth: int = 4
    time_frequency: float = 1.0

    def __post_init__(self) -> None:
        check_range("backbone.width", self.width, 1)
        check_range("backbone.depth", self.depth, 1)
        check_range("backbone.time_frequency", self.time_frequency, 0, open_low=True)

    def build(self, shape: tuple[int, ...], num_classes: int, jump: bool) -> nn.Module:
        if len(shape) != 1:
            raise UserError(
                f"backbone mlp needs vectors (D,), got data of shape {shape}; "
                f"images need one of the dit_* backbones"
            )
        return MLPNetwork(self, shape[0], num_classes, jump)


class MLPNetwork(nn.Module):
    """F(x, t, d, y) on x: (B, D)."""

    def __init__(self, settings: MLP, dimension: int, num_classes: int, jump: bool) -> None:
        super().__init__()
        width = settings.width
        self.condition = Condition(width, num_classes, jump, settings.time_frequency)
        self.embed = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(settings.depth))
        self.unembed = nn.Linear(width, dimension)
        nn.init.zeros_(self.unembed.weight)
        nn.init.zeros_(self.unembed.bias)

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        c = nnf.silu(self.condition(t, d, y))
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, c)
        return self.unembed(nnf.silu(h)).to(x.dtype)


class MLPBlock(nn.Module):
    """h + gate * W2 silu(W1 (norm(h) (1 + scale) + shift))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        normal = nnf.layer_norm(h, h.shape[-1:])
        return h + gate * self.down(nnf.silu(self.up(normal * (1 + scale) + shift)))
