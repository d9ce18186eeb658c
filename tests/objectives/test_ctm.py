"""CTM against its equations, which are EDM's, written out in noise levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives import CTM, Batch, Net, Nets
from fewstep.objectives.conformance.case import END, CallRecorder, Case, g, nonlinear_test_net

ROWS, SD = 64, 0.5


def scaled(theta: Tensor) -> Net:
    """A network with one weight, which all its inputs' curvatures depend on."""

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return theta * nonlinear_test_net(theta * x, t, d)

    return net


def edm(net: Net, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """G of the paper: x = data + t noise, (B, D); t, s (B,) noise levels."""
    t, s = t[:, None], s[:, None]
    c_in = 1 / (t**2 + SD**2).sqrt()
    c_skip, c_out = SD**2 / (t**2 + SD**2), t * SD / (t**2 + SD**2).sqrt()
    angle, other = (t / SD).atan()[:, 0], (s / SD).atan()[:, 0]
    denoised = c_skip * x + c_out * -net(c_in * x, angle, angle - other)
    return s / t * x + (1 - s / t) * denoised


def levels(t: Tensor) -> Tensor:
    return SD * t.tan()


def test_it_is_the_papers_jump() -> None:
    objective, x = CTM(), 3 * torch.randn(ROWS, 2, generator=g(0), dtype=torch.float64)
    t = torch.linspace(0.1, 1.5, ROWS, dtype=torch.float64)
    s = t * torch.rand(ROWS, generator=g(1), dtype=torch.float64)
    expected = edm(nonlinear_test_net, x, levels(t), levels(s))
    found = objective.jump(nonlinear_test_net, t.cos()[:, None] * x, t, s, None)
    torch.testing.assert_close(found, s.cos()[:, None] * expected)
    zero = edm(nonlinear_test_net, x, levels(t), 0 * t)
    found = objective.denoise(nonlinear_test_net, t.cos()[:, None] * x, t, None)
    torch.testing.assert_close(found, zero)
    slope = objective.velocity(nonlinear_test_net, SD * x, t, None)
    torch.testing.assert_close(slope, SD * nonlinear_test_net(x, t, 0 * t))


def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    shift = 0 if y is None else 0.1 * y[:, None]
    return nonlinear_test_net(x, t) + shift


def test_the_teacher_takes_heuns_steps_on_edms_grid() -> None:
    objective, n = CTM(), torch.tensor([1, 2, 5, 17])
    start = torch.tensor([16, 3, 0, 0])
    x, y = torch.randn(4, 2, generator=g(0), dtype=torch.float64), torch.arange(4)
    grid = objective.grid(x)
    root = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18, dtype=torch.float64)
    torch.testing.assert_close(grid, root**7)

    def slope(x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """(x - D(x, sigma)) / sigma, D = cos x_t - sin v."""
        t = (sigma / SD).atan()[None]
        v = teacher(t.cos() * x, t, y=y)
        return (x - (t.cos() ** 2 * x - t.sin() * v)) / sigma

    at = (grid[start] / SD).atan().cos()[:, None]
    found = objective.follow(Nets(teacher, teacher=teacher), at * x, grid, start, n, y)
    for i in range(4):
        row, label = x[i : i + 1], y[i : i + 1]
        for k in range(int(start[i]), int(start[i] + n[i])):
            h, first = grid[k + 1] - grid[k], slope(row, grid[k], label)
            row = row + h / 2 * (first + slope(row + h * first, grid[k + 1], label))
        end = (grid[start[i] + n[i]] / SD).atan().cos()
        torch.testing.assert_close(found[i : i + 1], end * row)


def test_its_segments() -> None:
    objective, x = CTM(levels=10, steps=6), torch.zeros(40_000, 1)
    n, start = objective.segments(x, g(0))
    for steps in range(1, 7):
        rows = n == steps
        assert int(rows.sum()) == pytest.approx(40_000 * steps / 21, abs=2)  # evenly drawn
        counts = torch.bincount(start[rows])
        assert len(counts) == 10 - steps
        assert float(counts.max() / counts.min()) < 1.5
    assert n[:100].unique().numel() > 4  # not in order
    case = Case(objective)
    loss = case.loss(case.nets(), case.batch(40_000, 0), 0)
    assert loss.d is not None
    grid = (objective.grid(x) / SD).atan()
    s = loss.t - loss.d
    index = torch.searchsorted(grid.flip(0), s - 1e-9)
    torch.testing.assert_close(grid.flip(0)[index.clamp(max=9)], s)
    last = 9 - index
    counts = torch.bincount(last, minlength=10)
    assert counts[0] == 0  # s is a step or more below t
    assert (counts[1:] > 0).all()
    first = 9 - torch.searchsorted(grid.flip(0), loss.t - 1e-9)
    assert (last > first).all()


def test_loss_and_gradient() -> None:
    """By hand, in noise levels, with autograd through all that the paper takes gradients of."""
    objective, theta = CTM(denoising=0.7), torch.tensor(1.1, dtype=torch.float64)
    theta.requires_grad_()
    case, average, net = Case(objective), CallRecorder(nonlinear_test_net), scaled(theta)
    online, y = CallRecorder(net), torch.arange(ROWS)
    batch = case.batch(ROWS, 0, y=y)
    loss = objective.loss(Nets(online, average, teacher), batch, END, g(0))
    (found,) = torch.autograd.grad(loss.per_sample.mean(), theta)
    inner, here, noisy = online.calls  # G(x_u, u -> s) first, of the target
    assert here.d is not None
    assert noisy.d is not None
    assert not noisy.d.any()
    assert [c.grad for c in online.calls] == [False, True, True]
    assert [c.grad for c in average.calls] == [False, True]  # from s to the data: target, estimate
    assert inner.d is not None
    t, u = here.t, inner.t
    s = t - here.d
    torch.testing.assert_close(u - inner.d, s)
    x_t, x_u = (SD * c.x / c.t.cos()[:, None] for c in (here, inner))
    t, u, s = levels(t), levels(u), levels(s)
    estimate = edm(nonlinear_test_net, edm(net, x_t, t, s), s, 0 * s)
    target = edm(nonlinear_test_net, edm(net, x_u, u, s), s, 0 * s).detach()
    L_ctm = (estimate - target).square().mean(1)
    sigma = levels(noisy.t)
    angle = noisy.t[:, None]
    x_r = SD * noisy.x
    denoised = angle.cos() * x_r - angle.sin() * SD * net(noisy.x, noisy.t, 0 * noisy.t)
    weight = (sigma**2 + SD**2) / (sigma * SD) ** 2
    L_dsm = weight * (batch.x - denoised).square().mean(1)
    F_1, F_2 = net(here.x, here.t, here.d), net(noisy.x, noisy.t, 0 * noisy.t)
    slopes = []
    for F, value in ((F_1, "jump"), (F_2, "flow")):
        out = F.detach().requires_grad_()
        if value == "jump":
            d, at = here.d[:, None], (s / SD).atan().cos()[:, None]
            x_s = (d.cos() * SD * here.x - d.sin() * SD * out) / at
            mean = (edm(nonlinear_test_net, x_s, s, 0 * s) - target).square().mean(1).mean()
        else:
            D = angle.cos() * x_r - angle.sin() * SD * out
            mean = (weight * (batch.x - D).square().mean(1)).mean()
        slopes.append(torch.autograd.grad(mean, out)[0].norm())
    balance = 0.7 * slopes[0] / slopes[1]
    torch.testing.assert_close(loss.logs["flow_weight"], balance)
    torch.testing.assert_close(loss.per_sample, L_ctm + balance * L_dsm)
    (expected,) = torch.autograd.grad((L_ctm + balance * L_dsm).mean(), theta)
    torch.testing.assert_close(found, expected)


def test_noise_levels_of_the_denoising_term() -> None:
    case = Case(CTM())
    record = CallRecorder(nonlinear_test_net)
    case.loss(Nets(record, nonlinear_test_net, case.teacher), case.batch(40_000, 0), 0)
    wide, usual = levels(record.calls[2].t).chunk(2)
    log_sigma = usual.log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.03)
    roots = wide ** (1 / 7)  # uniform
    low = 80 ** (1 / 7) - 0.7 * (80 ** (1 / 7) - 0.002 ** (1 / 7))
    assert float(wide.min()) == pytest.approx(0.318, abs=0.002)
    assert float(wide.max()) == pytest.approx(80, abs=0.1)
    assert float(roots.mean()) == pytest.approx((low + 80 ** (1 / 7)) / 2, abs=0.005)


def test_its_cost_counts_the_teachers_mean_number_of_steps() -> None:
    objective, rows = CTM(teacher_guidance=2.0), 1024
    case, record = Case(objective), CallRecorder(teacher)
    y = torch.zeros(rows, dtype=torch.int64)
    nets = Nets(nonlinear_test_net, nonlinear_test_net, record)
    objective.loss(nets, case.batch(rows, 0, y=y), END, g(0))
    called = sum(len(c.x) for c in record.calls) / rows
    assert 3 * objective.step_cost() == pytest.approx(10 + called, rel=0.005)
    assert CTM().step_cost() == pytest.approx((10 + 70 / 3) / 3)


def test_without_labels_and_under_no_grad_the_loss_is_the_same() -> None:
    case = Case(CTM())
    nets = case.nets(nonlinear_test_net, nonlinear_test_net)
    loss = case.loss(nets, Batch(case.batch(ROWS, 0).x), 0)
    with torch.no_grad():
        same = case.loss(nets, Batch(case.batch(ROWS, 0).x), 0)
    torch.testing.assert_close(loss.per_sample, same.per_sample)
    alone = Case(CTM(denoising=0.0)).loss(nets, case.batch(ROWS, 0), 0)
    assert (alone.per_sample <= loss.per_sample).all()
    assert float(alone.logs["flow_weight"]) == 0


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match=r"objective\.steps must be less than .*levels=10, got 10"):
        CTM(levels=10, steps=10)
    with pytest.raises(UserError, match=r"sigma_min must be less than .*sigma_max=80, got 90"):
        CTM(sigma_min=90.0)
    with pytest.raises(
        UserError, match=r"unknown objective\.target .teacher. \(choices: ema, online\)"
    ):
        CTM(target="teacher")
