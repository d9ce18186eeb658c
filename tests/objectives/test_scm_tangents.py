"""sCM's tangent: zero on the exact map, the derivative along the path for any other network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.objectives import SCD, SCM, GaussianFlow, Nets, Progress
from fewstep.objectives.conformance.case import END, STD, CallRecorder, Case, nonlinear_test_net
from fewstep.objectives.core.tangent import jvp
from fewstep.objectives.scm import LogWeight

WARM = SCM(tangent_warmup=0)


@pytest.mark.parametrize("sigma_d", [0.5, 1.0, 1.3])
def test_tangent_vanishes_on_the_exact_map(sigma_d: float) -> None:
    objective = SCM(sigma_d=sigma_d, tangent_warmup=0)
    case, flow = Case(objective), GaussianFlow(objective.path, STD)
    t, x = torch.linspace(0.05, 1.55, 200, dtype=torch.float64), case.noise(200, 0)
    exact = SCM(sigma_d=sigma_d).gaussian_optimum(flow, END)
    F, tangent = objective.tangent(exact, x, flow.velocity(x, t), t, None, END)
    torch.testing.assert_close(F, exact(x / sigma_d, t))
    assert float(tangent.abs().max()) < 1e-12


def test_tangent_before_warm_up_matches_the_velocity() -> None:
    objective = SCM(tangent_warmup=100)
    flow, sd = GaussianFlow(objective.path, STD), objective.sigma_d
    t, x = torch.linspace(0.05, 1.5, 50, dtype=torch.float64), Case(objective).noise(50, 0)
    v = flow.velocity(x, t)

    def exact(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return flow.velocity(sd * u, t) / sd

    _, at_start = objective.tangent(exact, x, v, t, None, Progress(0, 1000))
    _, half_way = objective.tangent(exact, x, v, t, None, Progress(50, 1000))
    _, warm = objective.tangent(exact, x, v, t, None, Progress(100, 1000))
    assert float(at_start.abs().max()) < 1e-12
    assert float(warm.abs().max()) > 0.01
    torch.testing.assert_close(half_way, warm / 2)
    long = SCM(tangent_warmup=10_000)  # at most half of the training
    _, cut = long.tangent(exact, x, v, t, None, Progress(500, 1000))
    torch.testing.assert_close(cut, warm)
    _, later = objective.tangent(exact, x, v, t, None, Progress(500, 1000))
    torch.testing.assert_close(later, warm)


@pytest.mark.parametrize("sigma_d", [0.5, 1.3])
def test_tangent_is_the_derivative_along_the_path(sigma_d: float) -> None:
    """g = cos(t) df/dt, by finite differences, for a network that is no oracle."""
    objective = SCM(sigma_d=sigma_d, tangent_warmup=0)
    case, path = Case(objective), objective.path
    x, eps = STD * case.noise(50, 0), case.noise(50, 1)
    t, h = torch.linspace(0.1, 1.5, 50, dtype=torch.float64), 1e-6
    after = objective.denoise(nonlinear_test_net, path.mix(x, eps, t + h), t + h, None)
    before = objective.denoise(nonlinear_test_net, path.mix(x, eps, t - h), t - h, None)
    expected = t.cos()[:, None] * (after - before) / (2 * h)
    x_t, dx_t = path.mix(x, eps, t), path.velocity(x, eps, t)
    _, tangent = objective.tangent(nonlinear_test_net, x_t, dx_t, t, None, END)
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)


def test_denoiser_in_numbers() -> None:
    """f = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)."""
    x, t = torch.tensor([[2.0]]).double(), torch.tensor([0.6]).double()
    F = math.sin(1.3 * 4 + 0.6) * (1 + 0.5 * 0.36)
    expected = math.cos(0.6) * 2 - math.sin(0.6) * 0.5 * F
    assert float(WARM.denoise(nonlinear_test_net, x, t, None)) == pytest.approx(expected)


class Level(torch.nn.Module):
    """w = 0.4, whatever t."""

    def forward(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.4)


@pytest.mark.parametrize("size", ["l2", "rms"])
def test_loss_in_numbers(size: str) -> None:
    """exp(w)/D |g/(|g| + c)|^2 - w, its gradient -2 exp(w)/D g/(|g| + c), its times' spread."""
    objective = SCM(tangent_warmup=0, tangent_norm=0.3, tangent_size=size)
    case, rows, D = Case(objective), 20_000, 4
    record = CallRecorder(nonlinear_test_net)
    x = STD * case.noise(rows, 0, (D,))
    batch = replace(case.batch(rows, 0), x=x)
    shift = torch.zeros(rows, D, dtype=torch.float64, requires_grad=True)

    def net(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return record(u, t) + shift

    loss = case.loss(Nets(net, auxiliary=Level()), batch, 0)
    (gradient,) = torch.autograd.grad(loss.per_sample.sum(), shift)
    scale = math.exp(0.4) / D
    step = -gradient / (2 * scale)
    torch.testing.assert_close(loss.per_sample, scale * step.square().sum(1) - 0.4)
    # the tangent itself, from the same x and t
    t = loss.t
    x_t = 0.5 * record.calls[0].x
    z = (x_t - t.cos()[:, None] * x) / t.sin()[:, None]
    dx_t = t.cos()[:, None] * z - t.sin()[:, None] * x
    _, g = objective.tangent(nonlinear_test_net, x_t, dx_t, t, None, END)
    norm = g.norm(dim=1) / (2.0 if size == "rms" else 1.0)
    torch.testing.assert_close(step, g / (norm + 0.3)[:, None], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.logs["tangent_norm"], norm.mean())
    tau = (0.5 * t.tan()).log()
    assert float(tau.mean()) == pytest.approx(objective.p_mean, abs=0.04)
    assert float(tau.std()) == pytest.approx(objective.p_std, abs=0.04)


def test_weight_begins_at_zero_and_learns() -> None:
    weight = LogWeight()
    assert (weight(torch.linspace(0, 1.5, 8)) == 0).all()
    weight(torch.linspace(0, 1.5, 8)).sum().backward()
    assert weight.linear.weight.grad is not None
    assert int((weight.linear.weight.grad != 0).sum()) == 31  # all but sin(0)


def test_distillation_moves_along_the_teacher() -> None:
    """sCD's loss is 0 where sCT's is not: with a teacher, dx_t/dt is the flow's own."""
    for objective, exact in ((SCD(tangent_warmup=0), True), (WARM, False)):
        case = Case(objective)
        loss = case.loss(case.nets(), case.batch(64, 0), 0)
        assert (float(loss.per_sample.max()) < 1e-20) == exact


def test_distillation_guides_its_teacher() -> None:
    def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return x * (1.0 if y is None else 3.0)

    y = torch.arange(8)
    for scale, factor in ((1.0, 3.0), (1.5, 1 + 1.5 * 2)):
        objective = SCD(teacher_guidance=scale)
        case = Case(objective)
        nets, batch = case.nets(teacher=teacher), case.batch(8, 0, y=y)
        drift = objective.drift(nets, batch, batch.x, batch.x, torch.ones(8))
        torch.testing.assert_close(drift, factor * batch.x)


def test_jvp_of_a_network_that_recomputes_its_activations() -> None:
    """Value with gradients, tangent without; and the switch is put back."""

    class CheckpointedNetwork(torch.nn.Module):
        checkpointing = True

        def forward(
            self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
        ) -> Tensor:
            seen.append(self.checkpointing)
            return nonlinear_test_net(x, t)

    seen: list[bool] = []
    net = CheckpointedNetwork()
    x = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    t, one = torch.full((4,), 0.3).double(), torch.ones(4).double()
    value, tangent = jvp(net, lambda x, t: net(x, t), (x, t), (torch.ones_like(x), one))
    assert seen == [False, True]
    assert net.checkpointing
    assert value.requires_grad
    assert not tangent.requires_grad
    ahead, behind = (nonlinear_test_net(x + h, t + h) for h in (1e-6, -1e-6))
    torch.testing.assert_close(tangent, ((ahead - behind) / 2e-6).detach(), rtol=1e-7, atol=1e-8)


def test_jvp_through_layers_with_weights() -> None:
    """The tangent by differences; the value's gradients as without a tangent."""
    torch.manual_seed(0)
    conv, linear = torch.nn.Conv2d(2, 2, 3, padding=1).double(), torch.nn.Linear(8, 8).double()

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(conv(x.view(-1, 2, 2, 2)) + t[:, None, None, None]).flatten(1)
        return linear(hidden).sin()

    x, along = torch.randn(2, 4, 8, dtype=torch.float64)
    t, one = torch.full((4,), 0.3).double(), torch.ones(4).double()
    parameters = [*conv.parameters(), *linear.parameters()]
    value, tangent = jvp(net, net, (x, t), (along, one))
    with torch.no_grad():
        ahead, behind = (net(x + h * along, t + h) for h in (1e-6, -1e-6))
    torch.testing.assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-7, atol=1e-8)
    found = torch.autograd.grad(value.square().sum(), parameters)
    expected = torch.autograd.grad(net(x, t).square().sum(), parameters)
    torch.testing.assert_close(found, expected)
