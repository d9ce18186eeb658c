"""MeanFlow's identity, weight and guidance; iMF's direction; alphaFlow between its ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.objectives import AlphaFlow, ImprovedMeanFlow, Loss, MeanFlow, Progress
from fewstep.objectives.conformance.case import (
    END,
    STD,
    TOTAL,
    CallRecorder,
    Case,
    nonlinear_test_net,
)
from fewstep.objectives.core.batch_math import expand

ROWS = 64
T = torch.linspace(0.3, 0.95, ROWS, dtype=torch.float64)
D = 0.3 * T


def labelled(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """A network that sees its label: half as much without one."""
    factor = torch.full_like(t, 0.5) if y is None else 1 + 0.1 * y
    return expand(factor, x) * nonlinear_test_net(x, t, d)


def total_derivative(x: Tensor, t: Tensor, d: Tensor, along: Tensor) -> Tensor:
    """d/dt of nonlinear_test_net(x_t, t, d) with t - d held, by central differences."""
    h = 1e-6
    return (
        nonlinear_test_net(x + h * along, t + h, d + h)
        - nonlinear_test_net(x - h * along, t - h, d - h)
    ) / (2 * h)


def sides(objective: MeanFlow, rows: int = 4096) -> tuple[Loss, Tensor, Tensor, Tensor, Tensor]:
    """The loss of ``nonlinear_test_net``, and x_t, t, d, v; the loss only gives t and d."""
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    batch = case.batch(rows, 0)
    loss = case.loss(case.nets(record), batch, 0)
    assert loss.d is not None
    n = round(objective.jump_share * rows)
    x_t = torch.cat([c.x for c in record.calls if c.grad and c.x.shape[0] in (n, rows - n, rows)])
    eps = (x_t - expand(1 - loss.t, x_t) * batch.x) / expand(loss.t, x_t)
    return loss, x_t, loss.t, loss.d, eps - batch.x


DIRECTIONS: dict[type[MeanFlow], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    MeanFlow: lambda x, t, v: v,
    ImprovedMeanFlow: lambda x, t, v: nonlinear_test_net(x, t, torch.zeros_like(t)),
}


@pytest.mark.parametrize("objective", [MeanFlow(p=0.75, jump_share=0.25), ImprovedMeanFlow()])
def test_loss_in_numbers(objective: MeanFlow) -> None:
    """|F - (v - d du/dt)|^2 / (|...|^2 + c)^p, the derivative by differences."""
    loss, x, t, d, v = sides(objective)
    du_dt = total_derivative(x, t, d, DIRECTIONS[type(objective)](x, t, v))
    squared = (nonlinear_test_net(x, t, d) - (v - expand(d, x) * du_dt)).square().sum(1)
    expected = squared / (squared + objective.c) ** objective.p
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-5, atol=1e-7)


def test_weight_carries_no_gradient() -> None:
    case = Case(MeanFlow(jump_share=0.0))
    shift = torch.zeros(ROWS, 2, dtype=torch.float64, requires_grad=True)

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return nonlinear_test_net(x, t, d) + shift

    loss = case.loss(case.nets(net), case.batch(ROWS, 0), 0)
    (gradient,) = torch.autograd.grad(loss.per_sample.sum(), shift)
    # of the square alone: |2 (F - v)| / (|F - v|^2 + c), and the loss is |F - v|^2 / (... + c)
    share = loss.per_sample.detach()  # s / (s + c)
    squared = 0.01 * share / (1 - share)
    torch.testing.assert_close(gradient.norm(dim=1), 2 * squared.sqrt() / (squared + 0.01))


@pytest.mark.parametrize(("objective", "share"), [(MeanFlow(), 0.25), (ImprovedMeanFlow(), 0.5)])
def test_two_logit_normal_draws_in_order(objective: MeanFlow, share: float) -> None:
    case = Case(objective)
    loss = case.loss(case.nets(nonlinear_test_net), case.batch(40_000, 0), 0)
    assert loss.d is not None
    n = int(share * 40_000)
    assert (loss.d[:n] > 0).all()
    assert (loss.d[n:] == 0).all()
    t, r = loss.t[:n], (loss.t - loss.d)[:n]
    both = torch.cat([t, r]).logit()
    assert float(both.mean()) == pytest.approx(-0.4, abs=0.03)
    assert float(both.std()) == pytest.approx(1.0, abs=0.03)
    # the larger of two normal draws is 1/sqrt(pi) above their mean, in all rows
    larger = -0.4 + 1 / math.sqrt(math.pi)
    assert float(t.logit().mean()) == pytest.approx(larger, abs=0.03)
    assert float(loss.t[n:].logit().mean()) == pytest.approx(larger, abs=0.03)


def test_guidance_in_numbers() -> None:
    """v_g = w v + k F(y) + (1 - w - k) F(none), in an interval, in rows that keep their label."""
    objective = MeanFlow(guidance=2.5, mixing=0.4, guidance_interval=(0.4, 0.8))
    x, v = torch.randn(2, ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
    true = torch.arange(ROWS) % 10
    y = torch.where(torch.arange(ROWS) % 3 == 0, 10, true)
    batch = replace(Case(objective).batch(ROWS, 0, y=y), y_true=true)
    found = objective.guided(labelled, x, T, v, batch)
    zero = torch.zeros_like(T)
    F, none = labelled(x, T, zero, true), labelled(x, T, zero, None)
    acts = (T >= 0.4) & (T <= 0.8) & (y == true)
    expected = torch.where(acts[:, None], 2.5 * v + 0.4 * F + (1 - 2.5 - 0.4) * none, v)
    torch.testing.assert_close(found, expected)
    assert objective.guided(labelled, x, T, v, replace(batch, y=None, y_true=None)) is v
    assert MeanFlow().guided(labelled, x, T, v, batch) is v


def test_guidance_reaches_the_target() -> None:
    y = torch.arange(ROWS) % 10
    values = []
    for objective in (MeanFlow(), MeanFlow(guidance=2.0)):
        case = Case(objective)
        values.append(case.loss(case.nets(labelled), case.batch(ROWS, 0, y=y), 0).per_sample)
    assert not torch.isclose(*values).any()


def test_improved_guidance_in_numbers() -> None:
    objective = ImprovedMeanFlow(guidance=2.5)
    x, v = torch.randn(2, ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
    y, zero = torch.arange(ROWS) % 10, torch.zeros_like(T)
    found = objective.guided(labelled, x, T, v, Case(objective).batch(ROWS, 0, y=y))
    difference = labelled(x, T, zero, y) - labelled(x, T, zero, None)
    torch.testing.assert_close(found, v + (1 - 1 / 2.5) * difference)


# ---- alphaFlow ---------------------------------------------------------------------------------


def test_alpha_one_is_flow_matching_at_every_length() -> None:
    loss, x, t, d, v = sides(AlphaFlow(alpha=1.0), 4096)
    squared = (nonlinear_test_net(x, t, d) - v).square().sum(1)
    torch.testing.assert_close(loss.per_sample, squared / (squared + 1e-3))


def test_alpha_zero_is_mean_flow() -> None:
    case, mean = Case(AlphaFlow(alpha=0.0)), Case(MeanFlow(jump_share=0.5, c=1e-3))
    found, expected = (
        c.loss(c.nets(nonlinear_test_net), c.batch(ROWS, 0), 0).per_sample for c in (case, mean)
    )
    torch.testing.assert_close(found, expected)


def test_alpha_to_zero_converges_to_mean_flow() -> None:
    """(F - target) / alpha -> F - (v - d du/dt), linearly in alpha."""
    x, v = torch.randn(2, ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
    F = nonlinear_test_net(x, T, D)
    limit = F - (v - expand(D, x) * total_derivative(x, T, D, v))
    errors = []
    for alpha in (1e-2, 1e-3, 1e-4):
        target = AlphaFlow().two_parts(nonlinear_test_net, x, T, D, v, alpha, None)
        errors.append(float(((F - target) / alpha - limit).abs().max()))
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("shift", ["sample", "network"])
def test_a_part_and_the_rest_of_a_jump(shift: str) -> None:
    x, v = torch.randn(2, ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
    found = AlphaFlow(shift=shift).two_parts(nonlinear_test_net, x, T, D, v, 0.3, None)
    first = nonlinear_test_net(x, T, 0.3 * D) if shift == "network" else v
    rest = nonlinear_test_net(x - expand(0.3 * D, x) * first, T - 0.3 * D, 0.7 * D)
    torch.testing.assert_close(found, 0.3 * first + 0.7 * rest)


def test_alpha_loss_in_numbers() -> None:
    """Rows with jumps weigh alpha / (s + c), the others 1 / (s + c)."""
    objective = AlphaFlow(alpha=0.3)
    case, record, rows = Case(objective), CallRecorder(nonlinear_test_net), 512
    batch = case.batch(rows, 0)
    loss = case.loss(case.nets(record), batch, 0)
    assert loss.d is not None
    (call,) = [c for c in record.calls if c.grad]
    eps = (call.x - expand(1 - call.t, call.x) * batch.x) / expand(call.t, call.x)
    target = eps - batch.x
    two = objective.two_parts
    target[:256] = two(
        nonlinear_test_net, call.x[:256], call.t[:256], loss.d[:256], target[:256], 0.3, None
    )
    squared = (nonlinear_test_net(call.x, call.t, loss.d) - target).square().sum(1)
    weight = torch.where(torch.arange(rows) < 256, 0.3, 1.0) / (squared + 1e-3)
    torch.testing.assert_close(loss.per_sample, weight * squared)


def test_ideal_is_a_fixed_point_where_the_flow_is_followed() -> None:
    """With the flow's own shift, every alpha below 1 leaves the average velocity as it is."""
    case = Case(AlphaFlow())
    x, ideal = STD * case.noise(ROWS, 0), case.test_net
    for alpha in (0.1, 0.5, 0.9):
        found = AlphaFlow(shift="network").two_parts(ideal, x, T, D, x, alpha, None)
        torch.testing.assert_close(found, ideal(x, T, D))


def test_alpha_falls_along_a_sigmoid() -> None:
    objective = AlphaFlow()

    def at(done: float, objective: AlphaFlow = objective) -> float:
        return objective.alpha_at(Progress(round(done * 10_000), 10_000))

    assert at(0) == 1
    assert at(0.4) == pytest.approx(1 / (1 + math.exp(-2.5)))
    assert at(0.5) == pytest.approx(0.5)
    assert at(0.6) == pytest.approx(1 / (1 + math.exp(2.5)))
    assert at(0.72) == 0  # below eta
    assert at(0.28) == 1
    later = AlphaFlow(start=0.5, end=0.9)
    assert at(0.7, later) == pytest.approx(0.5)
    assert at(0.74, later) == pytest.approx(1 / (1 + math.exp(2.5)))
    gentle = AlphaFlow(start=0.2, end=0.8, gamma=4.0)
    assert [at(0.19, gentle), at(0.81, gentle)] == [1, 0]
    assert at(0.5, gentle) == pytest.approx(0.5)
    assert at(0.9, AlphaFlow(start=0, end=0.03)) == 0
    assert AlphaFlow(alpha=0.3).alpha_at(END) == 0.3
    assert objective.alpha_at(Progress(TOTAL, TOTAL)) == 0


def test_labels_of_jumps_reach_the_first_and_the_second_part() -> None:
    case, record = Case(AlphaFlow(alpha=0.5, shift="network")), CallRecorder(labelled)
    y = torch.arange(ROWS) % 10
    case.loss(case.nets(record), case.batch(ROWS, 0, y=y), 0)
    assert [len(c.x) for c in record.calls] == [32, 32, 64]
    for c in record.calls:
        assert c.y is not None
        assert torch.equal(c.y, y[: len(c.y)])
