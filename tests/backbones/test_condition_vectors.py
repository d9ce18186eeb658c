"""Backbones take condition vectors instead of classes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import MLP, Backbone, DiT, UNet, build_backbone
from fewstep.errors import UserError

K = 3
CASES: list[tuple[Backbone, tuple[int, ...]]] = [
    (MLP(width=16, depth=1), (2,)),
    (DiT(width=16, depth=1, heads=2), (1, 4, 4)),
    (UNet(width=16, multipliers=(1,), depth=1, heads=2), (1, 4, 4)),
]


def network(backbone: Backbone, shape: tuple[int, ...], jump: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = build_backbone(backbone, shape, 0, jump, K)
    with torch.no_grad():
        for p in net.parameters():  # as after some training: gates and outputs are not 0
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize(("backbone", "shape"), CASES, ids=["mlp", "dit", "unet"])
def test_rows_see_their_own_vector_and_nan_is_no_condition(
    backbone: Backbone, shape: tuple[int, ...]
) -> None:
    net, x, t, y = (
        network(backbone, shape),
        torch.randn(4, *shape),
        torch.rand(4),
        torch.randn(4, K),
    )
    given, none = net(x, t, y=y), net(x, t)
    moved = y.clone()
    moved[1] += 1
    moved[2] = torch.nan
    found = net(x, t, y=moved)
    torch.testing.assert_close(found[[0, 3]], given[[0, 3]])
    torch.testing.assert_close(found[2], none[2])
    assert not torch.allclose(found[1], given[1])
    assert not torch.allclose(none, given)


def test_what_stands_for_no_condition_is_learned() -> None:
    net = network(MLP(width=16, depth=1), (2,))
    y = torch.randn(4, K)
    y[:2] = torch.nan
    net(torch.randn(4, 2), torch.rand(4), y=y).sum().backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if n.startswith("condition.")}
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())
    for name in ("condition.no_vector", "condition.vector.weight"):
        assert bool(gradients[name].abs().sum() > 0)  # type: ignore[union-attr]


def test_a_tangent_passes_by_the_vector() -> None:
    net, y = network(MLP(width=16, depth=1), (2,), jump=True).double(), torch.randn(4, K).double()
    x, t = torch.randn(4, 2).double(), torch.rand(4).double()

    def f(t: Tensor) -> Tensor:
        return net(x, t, t / 2, y)

    _, tangent = torch.func.jvp(f, (t,), (torch.ones_like(t),))  # type: ignore[misc]
    torch.testing.assert_close(tangent, (f(t + 1e-6) - f(t - 1e-6)) / 2e-6, atol=1e-6, rtol=1e-5)


def test_class_labels_have_the_parameters_they_had() -> None:
    torch.manual_seed(0)
    built = build_backbone(MLP(width=16, depth=1), (2,), 10, True, 0).state_dict()
    assert not [name for name in built if "vector" in name]
    assert built["condition.label.weight"].shape == (11, 16)


@dataclass(frozen=True)
class Old:
    """A backbone of version 0.1."""

    def build(self, shape: tuple[int, ...], num_classes: int, jump: bool) -> nn.Module:
        return nn.Identity()


def test_a_backbone_of_version_0_1_takes_classes_only() -> None:
    assert isinstance(build_backbone(Old(), (2,), 10, False, 0), nn.Identity)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"backbone Old takes no condition vectors, .* 3 numbers"):
        build_backbone(Old(), (2,), 0, False, 3)  # type: ignore[arg-type]
