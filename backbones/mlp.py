"""A residual MLP with adaLN-zero conditioning, for vectors."""

from dataclasses import dataclass

import torch.nn.functional as nnf
from torch import Tensor, nn

from fewstep.backbones.base import BACKBONES, ConditioningSettings
from fewstep.backbones.embeddings import ConditionEmbedding, Conditions
from fewstep.backbones.layers import NORMS, CheckpointedNetwork, Modulation, normalise, zero_init
from fewstep.errors import UserError, check_choice, check_fields


@BACKBONES.register("mlp")
@dataclass(frozen=True)
class MLP(ConditioningSettings):
    """Settings of a residual MLP.

    Attributes:
        width: features of a hidden layer. depth: number of residual blocks.
        norm: layer | rms, how hidden features are normalised.

    The others are those of ``ConditioningSettings``.
    """

    width: int = 256
    depth: int = 4
    norm: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("backbone", self, "width depth", 1)
        check_choice("backbone.norm", self.norm, NORMS)

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        if len(shape) != 1:
            raise UserError(
                f"backbone mlp needs vectors (D,), got data of shape {shape}; "
                f"images need one of the dit_* or unet_* backbones"
            )
        return MLPNetwork(self, shape[0], (num_classes, jump, condition_dim))


class MLPNetwork(CheckpointedNetwork):
    """F(x, t, d, y) on x: (B, D)."""

    def __init__(self, settings: MLP, dimension: int, conditions: Conditions) -> None:
        super().__init__()
        width = settings.width
        self.condition = ConditionEmbedding(settings, width, conditions)
        self.embed = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(MLPBlock(settings) for _ in range(settings.depth))
        self.unembed = zero_init(nn.Linear(width, dimension))

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        c = nnf.silu(self.condition(t, d, y))
        h = self.embed(x)
        for block in self.blocks:
            h = self.run(block, h, c)
        return self.unembed(nnf.silu(h)).to(x.dtype)


class MLPBlock(nn.Module):
    """h + gate * W2 silu(W1 (factor * norm(h) + shift))."""

    def __init__(self, settings: MLP) -> None:
        super().__init__()
        width = settings.width
        self.norm = settings.norm
        self.modulation = Modulation(width, width, ("shift", "scale", "gate"), settings.modulation)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, factor, gate = self.modulation(c)
        normal = normalise(h, self.norm, eps=1e-5)
        return h + gate * self.down(self.dropout(nnf.silu(self.up(normal * factor + shift))))
