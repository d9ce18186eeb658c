"""Networks whose zero initialisations were shaken, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]


@pytest.fixture
def awake() -> Awake:
    """Build a float64 network with noise on every parameter, so that everything matters."""

    def build(settings: Backbone, shape: tuple[int, ...], jump: bool = True) -> nn.Module:
        torch.manual_seed(0)
        net = settings.build(shape, 10, jump).double()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.2 * torch.randn_like(p))
        return net

    return build


@pytest.fixture
def inputs() -> Inputs:
    """Five rows of x, t, d and y, in float64."""

    def draw(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(1)
        x = torch.randn(5, *shape, generator=g, dtype=torch.float64)
        t = torch.rand(5, generator=g, dtype=torch.float64) * 0.5 + 0.5
        return x, t, t / 3, torch.arange(5)

    return draw
