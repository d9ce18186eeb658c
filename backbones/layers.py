"""What the networks have in common: normalisation, modulation, checkpointing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORMS = ("layer", "rms")


def normalise(h: Tensor, norm: str, eps: float = 1e-6) -> Tensor:
    """``layer`` or ``rms`` normalisation over the last axis, without parameters.

    The modulation supplies them.
    """
    if norm == "rms":
        return nnf.rms_norm(h, h.shape[-1:], eps=eps)
    return nnf.layer_norm(h, h.shape[-1:], eps=eps)


def zero_init(layer: nn.Module) -> nn.Module:
    """``layer`` with its parameters at 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Modulation(nn.Linear):
    """What the condition c does to normalised features h: (B, width) -> parts, each (B, features).

    A part is called shift, scale or gate. A scale comes out as the factor of h, so that every
    block writes ``factor * h + shift``; a gate multiplies what the block adds.

    - ``adaln``: (1 + s(c)) h + b(c)  (Peebles & Xie 2023).
    - ``double``: pnorm(s(c)) h + pnorm(b(c)), pnorm(v) = v / sqrt(mean(v^2) + eps): adaptive double
      normalisation (Lu & Song 2024, sec. 4.1), which bounds the part of the tangent that comes
      through c.

    Gates start at 0, and with them every block as the identity. In ``adaln`` shift and scale start
    at 0 too. In ``double`` they must not: pnorm has slope 1/sqrt(eps), a thousand, at 0. So their
    biases start with a mean square of 1, where the slope is 1: ones for the scale, normal numbers
    for the shift. The weights start at 0 all the same, and with them the tangent through c.
    """

    def __init__(self, width: int, features: int, parts: Sequence[str], kind: str) -> None:
        super().__init__(width, len(parts) * features)
        self.parts = tuple(parts)
        self.kind = kind
        zero_init(self)
        if self.kind == "double":
            with torch.no_grad():
                for part, bias in zip(self.parts, self.bias.chunk(len(self.parts)), strict=True):
                    if part == "shift":
                        bias.normal_()
                    elif part == "scale":
                        bias.fill_(1)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        chunks = super().forward(c).chunk(len(self.parts), dim=-1)
        return tuple(self._activate(*pair) for pair in zip(self.parts, chunks, strict=True))

    def _activate(self, part: str, v: Tensor) -> Tensor:
        if part == "gate":
            return v
        if self.kind == "double":
            return nnf.rms_norm(v, v.shape[-1:], eps=1e-6)
        return 1 + v if part == "scale" else v


class CheckpointedNetwork(nn.Module):
    """A network whose blocks can be recomputed in the backward pass instead of remembered.

    With ``checkpointing`` only the inputs of the blocks are kept, for the price of a second forward
    pass. Dropout draws the same masks again. Whoever takes a tangent must switch it off meanwhile.
    ``context`` makes what the two passes run in, if anything (``torch.utils.checkpoint``).
    """

    checkpointing: bool = False
    context: Callable[[], tuple[Any, Any]] | None = None

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """``block(*inputs)``."""
        if self.checkpointing:  # which does nothing where no gradient is wanted
            if self.context is None:  # torch.compile can trace no other
                return checkpoint(block, *inputs, use_reentrant=False)
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=self.context)
        return block(*inputs)
