"""Label dropout: some rows lose their condition, so that the network learns to do without.

Guidance needs that (Ho & Salimans 2022). A row without its condition has the class after the last
one, or a vector of NaN; ``y=None`` says the same of all rows.
"""

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_range


def drop_conditions(y: Tensor, share: float, num_classes: int, g: Generator | None) -> Tensor:
    """``y``, (B,) classes or (B, k) vectors, with the conditions of a ``share`` of rows dropped.

    ``num_classes`` may be anything for vectors. Raises ``UserError``: ``share`` outside [0, 1],
    conditions of another shape or type, no classes.
    """
    check_range("the share of rows without condition", share, 0, 1)
    if y.dim() != (2 if y.is_floating_point() else 1) or y.dtype == torch.bool:
        raise UserError(
            "conditions must be float vectors (B, k), or classes int64 (B,); "
            f"got {y.dtype} of shape {tuple(y.shape)}"
        )
    dropped = torch.rand(len(y), generator=g, device=y.device) < share
    if y.is_floating_point():
        return y.masked_fill(dropped[:, None], torch.nan)
    check_range("num_classes", num_classes, 1)  # the class after the last one stands for none
    return y.masked_fill(dropped, num_classes)


def kept_rows(y: Tensor, undropped: Tensor) -> Tensor:
    """(B,) whether a row of ``y`` has the condition it has in ``undropped``."""
    return (y == undropped).reshape(len(y), -1).all(1)  # NaN equals nothing
