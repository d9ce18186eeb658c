"""DiT with adaLN-zero (Peebles & Xie 2023), for square images.

Legend: B batch, N tokens, W width, H heads. Every block starts as the identity and the output as 0,
because the modulations start at 0. Attention goes through torch's ``scaled_dot_product_attention``:
whoever takes a tangent chooses the MATH backend around the call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fewstep.backbones.base import BACKBONES
from fewstep.backbones.embeddings import Condition
from fewstep.errors import UserError, check_range


@dataclass(frozen=True)
class DiT:
    """Settings of a diffusion transformer.

    Attributes:
        width: W, features a token. depth: number of blocks. heads: attention heads.
        patch: side of a patch in pixels; the image's side must be a multiple of it.
        mlp_ratio: hidden width of the feed-forward layers over W.
        time_frequency: highest frequency of the time embedding; 1 leaves time unscaled.
        qk_norm: normalise queries and keys (RMS).
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 2
    mlp_ratio: float = 4.0
    time_frequency: float = 1.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch"):
            check_range(f"backbone.{name}", getattr(self, name), 1)
        check_range("backbone.mlp_ratio", self.mlp_ratio, 0, open_low=True)
        check_range("backbone.time_frequency", self.time_frequency, 0, open_low=True)
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"backbone.width must be a multiple of backbone.heads and of 4, "
                f"got width {self.width}, heads {self.heads}"
            )

    def build(self, shape: tuple[int, ...], num_classes: int, jump: bool) -> nn.Module:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise UserError(f"a DiT needs square images (C, S, S), got data of shape {shape}")
        if shape[1] % self.patch:
            raise UserError(
                f"backbone.patch must divide the image's side {shape[1]}, got {self.patch}"
            )
        return DiTNetwork(self, shape, num_classes, jump)


# Peebles & Xie 2023, table 1; "dit_s_2" is DiT-S/2
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
for _size, (_width, _depth, _heads) in SIZES.items():
    for _patch in (2, 4, 8):
        BACKBONES.add(f"dit_{_size}_{_patch}", DiT(_width, _depth, _heads, _patch))
BACKBONES.add("dit_digits", DiT(width=64, depth=3, heads=4, patch=2))  # 8x8 images
BACKBONES.add("dit_mnist", DiT(width=192, depth=6, heads=6, patch=4))  # 28x28 images


class DiTNetwork(nn.Module):
    """F(x, t, d, y) on x: (B, C, S, S)."""

    positions: Tensor

    def __init__(self, settings: DiT, shape: tuple[int, ...], num_classes: int, jump: bool) -> None:
        super().__init__()
        channels, side, _ = shape
        self.patch = settings.patch
        width, pixels = settings.width, channels * settings.patch**2
        self.condition = Condition(width, num_classes, jump, settings.time_frequency)
        self.embed = nn.Linear(pixels, width)
        self.register_buffer("positions", grid(side // self.patch, width), persistent=False)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.unembed = nn.Linear(width, pixels)
        for layer in (self.modulation, self.unembed):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        c = nnf.silu(self.condition(t, d, y))
        h_BNW = self.embed(patchify(x, self.patch)) + self.positions.to(x.dtype)
        for block in self.blocks:
            h_BNW = block(h_BNW, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        h_BNW = self.unembed(modulate(normalise(h_BNW), shift, scale))
        return unpatchify(h_BNW, self.patch, x.shape).to(x.dtype)


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised, modulated and gated (adaLN-zero)."""

    def __init__(self, settings: DiT) -> None:
        super().__init__()
        width, hidden = settings.width, int(settings.mlp_ratio * settings.width)
        self.heads = settings.heads
        self.qk_norm = settings.qk_norm
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h_BNW: Tensor, c: Tensor) -> Tensor:
        a_shift, a_scale, a_gate, f_shift, f_scale, f_gate = self.modulation(c)[:, None].chunk(
            6, dim=-1
        )
        h_BNW = h_BNW + a_gate * self.attend(modulate(normalise(h_BNW), a_shift, a_scale))
        ff = nnf.gelu(self.up(modulate(normalise(h_BNW), f_shift, f_scale)), approximate="tanh")
        return h_BNW + f_gate * self.down(ff)

    def attend(self, h_BNW: Tensor) -> Tensor:
        B, N, W = h_BNW.shape
        q, k, v = self.qkv(h_BNW).view(B, N, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = nnf.rms_norm(q, q.shape[-1:]), nnf.rms_norm(k, k.shape[-1:])
        mixed = nnf.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(B, N, W))


def normalise(h: Tensor) -> Tensor:
    """LayerNorm without parameters: adaLN supplies them."""
    return nnf.layer_norm(h, h.shape[-1:], eps=1e-6)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, h, 1 + scale)


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


def grid(side: int, width: int) -> Tensor:
    """(side^2, width): fixed sines and cosines of a token's row and column."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    phase = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([phase.sin(), phase.cos()], dim=1)  # (side, width/2)
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)
