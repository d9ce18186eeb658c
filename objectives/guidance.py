"""Classifier-free guidance (Ho & Salimans 2022): a network wrapped into a network.

F_w(x, t, d, y) = F(x, t, d, none) + w (F(x, t, d, y) - F(x, t, d, none))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.objectives.base import Net


@dataclass(frozen=True)
class Guided:
    """``net`` with guidance ``scale`` w; ``null_class`` is the label that stands for none.

    Costs two network calls; w = 1 is the network itself.
    """

    net: Net
    scale: float
    null_class: int

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if y is None:
            raise ValueError("guidance needs class labels, got y=None")
        unconditional = self.net(x, t, d, torch.full_like(y, self.null_class))
        return unconditional + self.scale * (self.net(x, t, d, y) - unconditional)
