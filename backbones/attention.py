"""Self-attention, and the choice of the kernel that computes it."""

from dataclasses import dataclass

import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones.base import ConditioningSettings
from fewstep.errors import UserError, check_choice

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(ConditioningSettings):
    """The settings that networks with attention have beside those of ``ConditioningSettings``.

    Attributes:
        qk_norm: normalise queries and keys (RMS).
        attention_scale: per_sqrt_dim | per_dim, what the products of queries and keys are divided
            by: the square root of a head's width, or that width (the shortcut models' code).
        attention: auto | math | flash | efficient | cudnn, the kernel. auto leaves the choice to
            torch; a tangent takes math, because the fused kernels have no forward-mode derivative.
            A named one is forced; the result is the same up to rounding.
    """

    qk_norm: bool = False
    attention_scale: str = "per_sqrt_dim"
    attention: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = ("per_sqrt_dim", "per_dim")
        check_choice("backbone.attention_scale", self.attention_scale, scales)
        check_choice("backbone.attention", self.attention, ("auto", *KERNELS))


def multi_head_attention(qkv: Tensor, heads: int, settings: AttentionSettings) -> Tensor:
    """(B, N, 3 W), queries, keys and values side by side, to (B, N, W), in ``heads`` heads.

    Raises ``UserError``: the named kernel does not fit.
    """
    B, N, W = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(B, N, 3, heads, W // heads).permute(2, 0, 3, 1, 4)
    if settings.qk_norm:
        q, k = nnf.rms_norm(q, q.shape[-1:]), nnf.rms_norm(k, k.shape[-1:])
    scale = heads / W if settings.attention_scale == "per_dim" else None
    if settings.attention == "auto":
        mixed = nnf.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        mixed = _with_kernel(q, k, v, scale, settings.attention)
    return mixed.transpose(1, 2).reshape(B, N, W)


def _with_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float | None, kernel: str) -> Tensor:
    try:
        with sdpa_kernel(KERNELS[kernel]):
            return nnf.scaled_dot_product_attention(q, k, v, scale=scale)
    except RuntimeError as error:  # torch has no type for either
        if "forward AD" in str(error):
            reason = "it has no forward-mode derivative, which this objective takes"
        elif "No available kernel" in str(error) or "No viable backend" in str(error):
            reason = f"there is none for {q.dtype} on {q.device.type} with heads of {q.shape[-1]}"
        else:
            raise
        raise UserError(
            f"backbone.attention {kernel!r} cannot be used here: {reason}; what fits: auto, math"
        ) from None
