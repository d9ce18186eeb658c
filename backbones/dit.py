"""DiT with adaLN-zero (Peebles & Xie 2023), for square images.

Legend: B batch, N tokens, W width. Every block starts as the identity, because the gates start at
0, and the output as 0.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fewstep.backbones.attention import AttentionSettings, multi_head_attention
from fewstep.backbones.base import BACKBONES
from fewstep.backbones.embeddings import ConditionEmbedding, Conditions
from fewstep.backbones.layers import NORMS, CheckpointedNetwork, Modulation, normalise, zero_init
from fewstep.errors import UserError, check_choice, check_fields, check_range
from fewstep.registry import added


@dataclass(frozen=True)
class DiT(AttentionSettings):
    """Settings of a diffusion transformer.

    Attributes:
        width: W, features a token. depth: number of blocks. heads: attention heads.
        patch: side of a patch in pixels; the image's side must be a multiple of it.
        mlp_ratio: hidden width of the feed-forward layers over W.
        norm: layer | rms, how tokens are normalised.
        jump_blocks: so many of the last blocks, and the output, are told the time t - d where a
            jump ends, in place of t; the others t alone (decoupled MeanFlow, Lee et al. 2025,
            arXiv:2510.24474). There is no embedding of d then, and at d = 0 the network is the one
            without jumps, whose weights it can start from. null: all blocks are told t and d.

    The others are those of ``ConditioningSettings`` and ``AttentionSettings``.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 2
    mlp_ratio: float = 4.0
    norm: str = "layer"
    jump_blocks: int | None = added(None)

    repeated: ClassVar[str] = "depth"  # says of how many blocks of one kind it is

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("backbone", self, "width depth heads patch", 1)
        check_range("backbone.mlp_ratio", self.mlp_ratio, 0, open_low=True)
        check_fields("backbone", self, "jump_blocks", 1)
        check_choice("backbone.norm", self.norm, NORMS)
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"backbone.width must be a multiple of backbone.heads and of 4, "
                f"got width {self.width}, heads {self.heads}"
            )

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise UserError(f"a DiT needs square images (C, S, S), got data of shape {shape}")
        if shape[1] % self.patch:
            raise UserError(
                f"backbone.patch must divide the image's side {shape[1]}, got {self.patch}"
            )
        return DiTNetwork(self, shape, (num_classes, jump, condition_dim))


# Peebles & Xie 2023, table 1; "dit_s_2" is DiT-S/2
SIZES = {
    "s": DiT(width=384, depth=12, heads=6),
    "b": DiT(width=768, depth=12, heads=12),
    "l": DiT(width=1024, depth=24, heads=16),
    "xl": DiT(width=1152, depth=28, heads=16),
}
for _size, _settings in SIZES.items():
    for _patch in (2, 4, 8):
        BACKBONES.add(f"dit_{_size}_{_patch}", replace(_settings, patch=_patch))
BACKBONES.add("dit_digits", DiT(width=64, depth=3, heads=4, patch=2))  # 8x8 images
BACKBONES.add("dit_mnist", DiT(width=192, depth=6, heads=6, patch=4))  # 28x28 images
# as in the shortcut models' code (github.com/kvfrans/shortcut-models), up to initialisation
for _size in ("b", "xl"):
    _settings = replace(SIZES[_size], time_features=256, attention_scale="per_dim")
    BACKBONES.add(f"dit_{_size}_2_kvfrans", _settings)


class DiTNetwork(CheckpointedNetwork):
    """F(x, t, d, y) on x: (B, C, S, S)."""

    positions: Tensor

    def __init__(self, settings: DiT, shape: tuple[int, ...], conditions: Conditions) -> None:
        super().__init__()
        channels, side, _ = shape
        self.patch, self.norm = settings.patch, settings.norm
        width, pixels = settings.width, channels * settings.patch**2
        num_classes, jump, condition_dim = conditions
        self.jump_blocks = settings.jump_blocks if jump else None
        embedded = jump and self.jump_blocks is None
        self.condition = ConditionEmbedding(settings, width, (num_classes, embedded, condition_dim))
        self.embed = nn.Linear(pixels, width)
        self.register_buffer(
            "positions", position_embedding(side // self.patch, width), persistent=False
        )
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.modulation = Modulation(width, width, ("shift", "scale"), settings.modulation)
        self.unembed = zero_init(nn.Linear(width, pixels))
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if self.jump_blocks is None:
            c = end = nnf.silu(self.condition(t, d, y))
        elif d is None:
            raise ValueError("this network was built with a jump length, got d=None")
        else:
            c, end = (nnf.silu(self.condition(time, None, y)) for time in (t, t - d))
        h_BNW = self.embed(patchify(x, self.patch)) + self.positions.to(x.dtype)
        first = max(0, len(self.blocks) - (self.jump_blocks or 0))
        for i, block in enumerate(self.blocks):
            h_BNW = self.run(block, h_BNW, c if i < first else end)
        c = end
        shift, factor = (part[:, None] for part in self.modulation(c))
        h_BNW = self.unembed(torch.addcmul(shift, normalise(h_BNW, self.norm), factor))
        return unpatchify(h_BNW, self.patch, x.shape).to(x.dtype)


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised, modulated and gated (adaLN-zero)."""

    def __init__(self, settings: DiT) -> None:
        super().__init__()
        width, hidden = settings.width, int(settings.mlp_ratio * settings.width)
        self.settings = settings
        self.modulation = Modulation(
            width, width, ("shift", "scale", "gate") * 2, settings.modulation
        )
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(settings.dropout)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h_BNW: Tensor, c: Tensor) -> Tensor:
        settings = self.settings
        a_shift, a_factor, a_gate, f_shift, f_factor, f_gate = (
            part[:, None] for part in self.modulation(c)
        )
        a = torch.addcmul(a_shift, normalise(h_BNW, settings.norm), a_factor)
        h_BNW = h_BNW + a_gate * self.out(
            multi_head_attention(self.qkv(a), settings.heads, settings)
        )
        f = torch.addcmul(f_shift, normalise(h_BNW, settings.norm), f_factor)
        f = self.dropout(nnf.gelu(self.up(f), approximate="tanh"))
        return h_BNW + f_gate * self.down(f)


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, S, S) -> (B, (S/p)^2, C p^2)."""
    B, C, S, _ = x.shape
    n = S // patch
    return x.view(B, C, n, patch, n, patch).permute(0, 2, 4, 1, 3, 5).reshape(B, n * n, -1)


def unpatchify(tokens: Tensor, patch: int, shape: torch.Size) -> Tensor:
    """The inverse of ``patchify``, for images of ``shape``."""
    B, C, S, _ = shape
    n = S // patch
    return tokens.view(B, n, n, C, patch, patch).permute(0, 3, 1, 4, 2, 5).reshape(shape)


def position_embedding(side: int, width: int) -> Tensor:
    """(side^2, width): fixed sines and cosines of a token's row and column."""
    # the same bits everywhere; and on the meta device torch's arange imports its compiler
    with torch.device("cpu"):
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
        phase = torch.arange(side)[:, None] * frequencies
        axis = torch.cat([phase.sin(), phase.cos()], dim=1)  # (side, width/2)
        rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
        positions = torch.cat([rows, columns], dim=1)
    return positions.to(torch.get_default_device())
