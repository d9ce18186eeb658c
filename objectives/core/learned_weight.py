"""A learned weight of the loss, one for each time: log-variances (Kendall et al. 2018; EDM2)."""

import math

import torch
from torch import Tensor, nn


class LogWeight(nn.Module):
    """w of ``inputs`` times, each (B,), to (B,): a linear layer on a few cosines and sines of each.

    0 at first.
    """

    frequencies: Tensor

    def __init__(self, features: int = 32, inputs: int = 1) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0, 8, features // 2), persistent=False)
        self.linear = nn.Linear(features * inputs, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, *times: Tensor) -> Tensor:
        phases = [t.float()[:, None] * self.frequencies for t in times]
        waves = torch.cat([f(phase) for phase in phases for f in (torch.cos, torch.sin)], dim=1)
        return self.linear(waves / math.sqrt(len(self.frequencies)))[:, 0]
