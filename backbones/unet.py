"""A compact U-Net for images, after Ho et al. 2020 and Dhariwal & Nichol 2021.

On the way down each level has residual blocks and, but for the last, a convolution that halves the
side; the way back up takes in what every stage on the way down gave. The blocks of the lowest
levels end in self-attention. The last convolution of a block, the last layer of its attention and
the output start at 0: a block starts as its shortcut, the network as 0.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fewstep.backbones.attention import AttentionSettings, multi_head_attention
from fewstep.backbones.base import BACKBONES
from fewstep.backbones.embeddings import ConditionEmbedding, Conditions
from fewstep.backbones.layers import CheckpointedNetwork, Modulation, zero_init
from fewstep.errors import UserError, check_fields, check_range


@dataclass(frozen=True)
class UNet(AttentionSettings):
    """Settings of a U-Net.

    Attributes:
        width: channels at full resolution, a multiple of 4.
        multipliers: channels of each level over ``width``; a level has half the side of the last.
        depth: residual blocks a level on the way down, one more on the way up.
        heads: attention heads.
        attention_levels: number of levels with attention, the lowest ones; 0 for none at all.

    The others are those of ``ConditioningSettings`` and ``AttentionSettings``.
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 2)
    depth: int = 2
    heads: int = 4
    attention_levels: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("backbone", self, "width depth heads", 1)
        levels = len(self.multipliers)
        if not levels:
            raise UserError("backbone.multipliers must name at least one level, got []")
        for multiplier in self.multipliers:
            check_range("backbone.multipliers", multiplier, 1)
        check_range("backbone.attention_levels", self.attention_levels, 0, levels)
        if self.width % 4 or (self.attention_levels and self.width % self.heads):
            raise UserError(
                f"backbone.width must be a multiple of backbone.heads and of 4, "
                f"got width {self.width}, heads {self.heads}"
            )

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        if len(shape) != 3:
            raise UserError(f"a U-Net needs images (C, H, W), got data of shape {shape}")
        coarsest = 2 ** (len(self.multipliers) - 1)
        if shape[1] % coarsest or shape[2] % coarsest:
            raise UserError(
                f"a U-Net of {len(self.multipliers)} levels (backbone.multipliers) needs images "
                f"with sides divisible by {coarsest}, got data of shape {shape}"
            )
        return UNetNetwork(self, shape[0], (num_classes, jump, condition_dim))


BACKBONES.add("unet_digits", UNet(width=32, multipliers=(1, 2), depth=1))  # 8x8 images
BACKBONES.add("unet_mnist", UNet(width=32, multipliers=(1, 2, 2), depth=1))  # 28x28 images
BACKBONES.add("unet_32", UNet())  # 32x32 images


class UNetNetwork(CheckpointedNetwork):
    """F(x, t, d, y) on x: (B, C, H, W)."""

    def __init__(self, settings: UNet, channels: int, conditions: Conditions) -> None:
        super().__init__()
        width, emb = settings.width, 4 * settings.width
        levels = [width * multiplier for multiplier in settings.multipliers]
        lowest = len(levels) - settings.attention_levels  # the first level with attention
        self.condition = ConditionEmbedding(settings, emb, conditions)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        h, kept = width, [width]  # channels now, and of what the way up will take in
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, out in enumerate(levels):
            for _ in range(settings.depth):
                self.down.append(ResBlock(h, out, emb, settings, i >= lowest))
                h = out
                kept.append(h)
            if i < len(levels) - 1:
                self.down.append(Downsample(h))
                kept.append(h)
        attentive = settings.attention_levels > 0
        self.middle = nn.ModuleList(
            ResBlock(h, h, emb, settings, attention) for attention in (attentive, False)
        )
        for i, out in reversed(list(enumerate(levels))):
            for _ in range(settings.depth + 1):
                self.up.append(ResBlock(h + kept.pop(), out, emb, settings, i >= lowest))
                h = out
            if i > 0:
                self.up.append(Upsample(h))
        self.norm = group_norm(h)
        self.unembed = zero_init(nn.Conv2d(h, channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        c = nnf.silu(self.condition(t, d, y))
        h = self.stem(x)
        kept = [h]
        for stage in self.down:
            h = self.run(stage, h, c)
            kept.append(h)
        for stage in self.middle:
            h = self.run(stage, h, c)
        for stage in self.up:
            if isinstance(stage, ResBlock):
                h = torch.cat([h, kept.pop()], dim=1)
            h = self.run(stage, h, c)
        return self.unembed(nnf.silu(self.norm(h))).to(x.dtype)


class ResBlock(nn.Module):
    """shortcut(h) + conv(silu(factor * norm(conv(silu(norm(h)))) + shift)), then attention."""

    def __init__(self, channels: int, out: int, emb: int, settings: UNet, attention: bool) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = Modulation(emb, out, ("shift", "scale"), settings.modulation)
        self.modulated_norm = group_norm(out, affine=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.second = zero_init(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.attention = Attention(out, settings) if attention else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, factor = (part[:, :, None, None] for part in self.modulation(c))
        new = self.first(nnf.silu(self.norm(h)))
        new = nnf.silu(torch.addcmul(shift, self.modulated_norm(new), factor))
        return self.attention(self.shortcut(h) + self.second(self.dropout(new)))


class Attention(nn.Module):
    """h + attention over the pixels of norm(h)."""

    def __init__(self, channels: int, settings: UNet) -> None:
        super().__init__()
        self.settings = settings
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        mixed = self.out(multi_head_attention(self.qkv(tokens), self.settings.heads, self.settings))
        return h + mixed.transpose(1, 2).reshape(h.shape)


class Downsample(nn.Module):
    """Half the side, by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.conv(h)


class Upsample(nn.Module):
    """Twice the side: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.conv(nnf.interpolate(h, scale_factor=2.0))


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels each (Karras et al. 2022)."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels, eps=1e-6, affine=affine)
