"""LSD, ESD and PSD: residuals and their gradients by differences, times, weight; the tangent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.backbones.dit import DiT
from fewstep.backbones.unet import UNet
from fewstep.errors import UserError
from fewstep.objectives import ESD, LSD, OBJECTIVES, PSD, Net, Nets
from fewstep.objectives.conformance.case import CallRecorder, Case, g, nonlinear_test_net
from fewstep.objectives.core.self_distillation import SelfDistillation
from fewstep.objectives.core.tangent import jvp

ROWS = 64
T = torch.linspace(0.3, 0.95, ROWS, dtype=torch.float64)
D = 0.4 * T
H = 1e-6


def scaled(theta: Tensor) -> Net:
    """A network with one weight, which all its inputs' curvatures depend on."""

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return theta * nonlinear_test_net(theta * x, t, d)

    return net


def lsd(net: Net, fixed: Net, x: Tensor) -> Tensor:
    """dX/ds - v(X, s), s being t - d, the derivative by differences."""

    def X(at: Net, s: Tensor) -> Tensor:
        return x - (T - s)[:, None] * at(x, T, T - s)

    s = T - D
    dX = (X(net, s + H) - X(net, s - H)) / (2 * H)
    return dX - fixed(X(fixed, s), s, torch.zeros_like(s))


def esd(net: Net, fixed: Net, x: Tensor, space: Net) -> Tensor:
    """-(dX/dt + dX/dx v), along the flow, s held."""

    def X(at: Net, x: Tensor, t: Tensor) -> Tensor:
        d = t - (T - D)
        return x - d[:, None] * at(x, t, d)

    v = fixed(x, T, torch.zeros_like(T))
    dt = (X(net, x, T + H) - X(net, x, T - H)) / (2 * H)
    dx = (X(space, x + H * v, T) - X(space, x - H * v, T)) / (2 * H)
    return -(dt + dx)


CASES: dict[str, tuple[SelfDistillation, Callable[[Net, Net, Tensor], Tensor]]] = {
    "lsd": (LSD(), lsd),
    "esd, gradient of the times": (ESD(), lambda net, fixed, x: esd(net, fixed, x, fixed)),
    "esd, of all": (ESD(gradient_of="all"), lambda net, fixed, x: esd(net, fixed, x, net)),
}


@pytest.mark.parametrize("case", CASES)
def test_residual_and_its_gradient(case: str) -> None:
    objective, by_differences = CASES[case]
    x = Case(objective).noise(ROWS, 0)
    theta = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    r = objective.residual(Nets(scaled(theta)), x, T, D, None, g(0))
    fixed = scaled(theta.detach())
    torch.testing.assert_close(r, by_differences(fixed, fixed, x), rtol=1e-6, atol=1e-7)
    (found,) = torch.autograd.grad(r.square().mean(), theta)
    near = [
        by_differences(scaled(theta.detach() + h), fixed, x).square().mean() for h in (1e-4, -1e-4)
    ]
    assert float(found) == pytest.approx(float(near[0] - near[1]) / 2e-4, rel=1e-4)


def test_without_gradients_of_derivatives_esd_is_mean_flow_along_its_own_velocity() -> None:
    x = Case(ESD()).noise(ROWS, 0)
    theta = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    net = scaled(theta)
    r = ESD(gradient_of="none").residual(Nets(net), x, T, D, None, g(0))
    fixed = scaled(theta.detach())
    torch.testing.assert_close(r, esd(fixed, fixed, x, fixed), rtol=1e-6, atol=1e-7)
    (found,) = torch.autograd.grad(r.square().sum(), theta)
    (of_F,) = torch.autograd.grad((2 * r.detach() * net(x, T, D)).sum(), theta)
    torch.testing.assert_close(found, of_F)


@pytest.mark.parametrize("split", ["uniform", "middle"])
def test_two_jumps_make_one(split: str) -> None:
    objective = PSD(split=split)
    x, record = Case(objective).noise(ROWS, 0), CallRecorder(nonlinear_test_net)
    r = objective.residual(Nets(record), x, T, D, None, g(0))
    first, second, whole = record.calls
    assert [c.grad for c in record.calls] == [False, False, True]
    assert first.d is not None
    assert second.d is not None
    share = first.d / D
    if split == "middle":
        torch.testing.assert_close(share, torch.full_like(share, 0.5))
    else:
        assert float(share.mean()) == pytest.approx(0.5, abs=0.15)
        assert float(share.std()) == pytest.approx(1 / math.sqrt(12), abs=0.1)
    torch.testing.assert_close(first.d + second.d, D)
    torch.testing.assert_close(second.t, T - first.d)
    # where two jumps end, the whole jump should
    middle = x - first.d[:, None] * nonlinear_test_net(x, T, first.d)
    end = middle - second.d[:, None] * nonlinear_test_net(middle, second.t, second.d)
    own = whole.x - D[:, None] * nonlinear_test_net(whole.x, T, D)
    torch.testing.assert_close(D[:, None] * r, end - own)


@pytest.mark.parametrize("name", ["lsd", "esd", "psd"])
def test_exact_flow_maps_leave_nothing(name: str) -> None:
    objective = OBJECTIVES[name]
    assert isinstance(objective, SelfDistillation)
    case = Case(objective)
    x = case.noise(ROWS, 0)
    r = objective.residual(case.nets(), x, T, D, None, g(0))
    assert float(r.abs().max()) < 1e-12
    r = objective.residual(case.nets(nonlinear_test_net), x, T, D, None, g(0))
    assert float(r.abs().max()) > 0.1


@pytest.mark.parametrize(("name", "calls"), [("lsd", 1), ("esd", 2), ("psd", 2)])
@pytest.mark.parametrize("target", ["ema", "online"])
def test_targets_come_from_the_network_named(name: str, calls: int, target: str) -> None:
    objective = replace(OBJECTIVES[name], target=target)
    assert isinstance(objective, SelfDistillation)
    ema, online = CallRecorder(nonlinear_test_net), CallRecorder(nonlinear_test_net)
    objective.residual(Nets(online, ema), Case(objective).noise(ROWS, 0), T, D, None, g(0))
    assert [len(ema.calls), len(online.calls)] == (
        [calls, 1] if target == "ema" else [0, 1 + calls]
    )


@pytest.mark.parametrize("name", ["lsd", "esd", "psd"])
def test_times_shares_and_weight(name: str) -> None:
    """A quarter of the rows jump between two uniform times; the loss is exp(-w) error + w."""
    objective = OBJECTIVES[name]
    case, rows = Case(objective), 40_000
    loss = case.loss(case.nets(nonlinear_test_net), case.batch(rows, 0), 0)
    assert loss.d is not None
    n = rows // 4
    t, d = loss.t, loss.d
    assert (d[:n] > 0).all()
    assert (d[n:] == 0).all()
    assert float(d[:n].mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(t[:n].mean()) == pytest.approx(2 / 3, abs=0.01)
    assert float(t[n:].mean()) == pytest.approx(1 / 2, abs=0.01)
    weight = case.auxiliary
    assert weight is not None
    for parameter in weight.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    w = weight(t, d)
    weighted = case.loss(case.nets(nonlinear_test_net), case.batch(rows, 0), 0)
    expected = (-w).exp() * loss.per_sample.detach() + w
    torch.testing.assert_close(weighted.per_sample, expected)
    assert not torch.equal(weight(t, d), weight(t, 0.5 * d))


def test_one_row_is_flow_matching() -> None:
    case = Case(LSD(flow_share=0.01, weight="none"))
    loss = case.loss(case.nets(nonlinear_test_net), case.batch(1, 0), 0)
    assert loss.d is not None
    assert float(loss.d) == 0
    assert case.auxiliary is None


@pytest.mark.parametrize(
    "backbone",
    [
        DiT(width=16, depth=2, heads=2, patch=2, time_features=8),
        UNet(width=8, multipliers=(1, 2), depth=1, heads=2, attention_levels=1, time_features=8),
    ],
    ids=["DiT", "U-Net"],
)
def test_gradients_through_a_tangent(backbone: DiT | UNet) -> None:
    """Of all weights of a real network, by differences along one direction in them."""
    torch.manual_seed(0)
    net = backbone.build((2, 8, 8), 3, True).double()
    weights = [p for p in net.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in weights]
    with torch.no_grad():
        for p in weights:
            p += 0.1 * torch.randn_like(p)
    x, along = torch.randn(2, 4, 2, 8, 8, dtype=torch.float64)
    t, y = torch.tensor([0.3, 0.5, 0.7, 0.9]).double(), torch.tensor([0, 1, 2, 0])

    def F(d: Tensor) -> Tensor:
        return net(x, t, d, y)

    d = t / 2
    value, tangent = jvp(net, F, (d,), (torch.ones_like(d),), keep_gradient=True)
    gradients = torch.autograd.grad((value + tangent * along).square().sum(), weights)
    found = sum(float((a * b).sum()) for a, b in zip(gradients, directions, strict=True))
    losses, h = [], 1e-5
    with torch.no_grad():
        for step in (h, -2 * h):
            for p, direction in zip(weights, directions, strict=True):
                p += step * direction
            slope = (F(d + H) - F(d - H)) / (2 * H)
            losses.append(float((F(d) + slope * along).square().sum()))
    assert found == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-5)


def test_a_batch_norm_is_refused_where_its_gradient_would_be_wrong() -> None:
    x = torch.randn(4, 3)

    def net(x: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, None, None, training=True)

    with pytest.raises(UserError, match="batch norm"):
        jvp(nonlinear_test_net, net, (x,), (x,), keep_gradient=True)
