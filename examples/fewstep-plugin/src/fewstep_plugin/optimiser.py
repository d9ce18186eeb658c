"""An optimiser: gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import check_range
from fewstep.experiments.optimisers import Update


@dataclass(frozen=True)
class SGD:
    """Gradient descent: w <- w - lr (m + weight_decay w), m <- momentum m + gradient."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range("training.optimiser.momentum", self.momentum, 0, 0.999999)

    def rules(self, network: nn.Module) -> Mapping[Tensor, str]:
        """One rule for all parameters."""
        return {}

    def slots(self, parameter: Tensor, rule: str) -> dict[str, Tensor]:
        """What a checkpoint keeps of a parameter: its momentum."""
        return {"momentum": torch.zeros_like(parameter)}

    def step(self, update: Update) -> None:
        """Change parameters and momenta in place."""
        slots = update.slots["momentum"]
        for p, gradient, m in zip(update.parameters, update.gradients, slots, strict=True):
            m.mul_(self.momentum).add_(gradient)
            p.mul_(1 - update.lr * update.weight_decay).sub_(m, alpha=update.lr)
