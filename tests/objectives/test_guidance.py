"""Guidance as an affine combination of two calls."""

import pytest
import torch
from torch import Tensor

from fewstep.objectives import Guided


def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    assert y is not None
    return x + y[:, None]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_from_no_label_to_label(scale: float) -> None:
    x, t, y = torch.ones(4, 2), torch.zeros(4), torch.tensor([0, 1, 2, 3])
    guided = Guided(net, scale, null_class=10)(x, t, None, y)
    expected = x + 10 + scale * (y[:, None] - 10)
    torch.testing.assert_close(guided, expected)


def test_guidance_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        Guided(net, 2.0, 10)(torch.ones(1, 2), torch.zeros(1))
