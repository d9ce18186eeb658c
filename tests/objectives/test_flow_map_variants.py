"""SoFlow, TiM, TVM and FACM against their equations; derivatives by differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives import FACM, SCM, TVM, MeanFlow, Net, Nets, Objective, SoFlow, TiM
from fewstep.objectives.conformance.case import END, CallRecorder, Case, g, nonlinear_test_net
from fewstep.objectives.core.base import Batch, Progress
from fewstep.objectives.core.batch_math import cosine_distance
from fewstep.objectives.core.tangent import by_differences, jvp
from fewstep.objectives.facm import FACMDistillation

ROWS = 64
H = 1e-6


def scaled(theta: Tensor) -> Net:
    """A network with one weight, which all its inputs' curvatures depend on."""

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return theta * nonlinear_test_net(theta * x, t, d)

    return net


def gradient(objective: Objective, progress: Progress = END) -> Tensor:
    """Of the loss in the one weight of ``scaled``."""
    case, theta = Case(objective), torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    net = scaled(theta)
    loss = case.loss(case.nets(net, net), case.batch(ROWS, 0), 0, progress).per_sample.sum()
    return torch.autograd.grad(loss, theta)[0]


# ------------------------------------------------------------------------------------ differences


def test_differences_are_of_second_order() -> None:
    x = torch.linspace(-1, 1, ROWS, dtype=torch.float64)[:, None]
    t, u = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64), torch.ones(ROWS).double()

    def f(x: Tensor, t: Tensor) -> Tensor:
        return nonlinear_test_net(x, t, t)

    value, exact = jvp(nonlinear_test_net, f, (x, t), (2 * x, u))
    errors = []
    for h in (0.02, 0.01):
        same, near = jvp(nonlinear_test_net, f, (x, t), (2 * x, u), step=h)
        torch.testing.assert_close(same, value)
        errors.append(float((near - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)
    of_each = by_differences(f, (x, t), (2 * x, u), torch.full_like(t, 0.01))[1]
    torch.testing.assert_close(of_each, near)


def test_all_three_passes_draw_one_dropout_mask() -> None:
    dropout, x = nn.Dropout(0.5), torch.rand(ROWS, 8, dtype=torch.float64) + 0.5
    value, slope = by_differences(lambda x: dropout(x**2), (x,), (torch.ones_like(x),), 1e-4)
    assert 0.3 < float((value == 0).double().mean()) < 0.7
    torch.testing.assert_close(slope, 2 * value / x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", [MeanFlow(jump_share=0.5), SCM()], ids=["MeanFlow", "sCM"])
def test_a_setting_takes_differences_in_place_of_the_tangent(objective: Objective) -> None:
    exact = gradient(objective)
    near = gradient(replace(objective, tangent_step=1e-4))  # type: ignore[call-arg]
    torch.testing.assert_close(near, exact, rtol=1e-5, atol=0)
    assert not torch.equal(near, exact)


def test_cosines_are_over_channels() -> None:
    a, b = torch.randn(2, 3, 4, 2, 2, generator=g(0), dtype=torch.float64)
    by_pixel = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(cosine_distance(a, b), 1 - by_pixel.mean((1, 2)))
    with pytest.raises(UserError, match=r"objective\.tangent_step must be .* at most 1, got 5"):
        SCM(tangent_step=5)
    with pytest.raises(ValueError, match="has no gradient"):
        jvp(nonlinear_test_net, lambda x: x, (a,), (a,), keep_gradient=True, step=0.1)


# ----------------------------------------------------------------------------------------- SoFlow


def test_soflow_becomes_mean_flow() -> None:
    """Half its gradient, as its step falls: MeanFlow's at SoFlow's times."""

    class AtTheTimes(MeanFlow):
        def times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
            return SoFlow().times(x, n, g)

    for p in (0.0, 1.0):
        # of two coordinates the mean is half of the sum, and c beside it
        flow = gradient(AtTheTimes(p=p, c=0.02, jump_share=1.0)) / (2 if p == 0 else 1)
        errors = [
            abs(float(gradient(SoFlow(p=p, jump_share=1.0, first=h, last=h)) * 2 / flow - 1))
            for h in (1e-2, 1e-3)
        ]
        assert errors[1] < 3e-3
        assert errors[1] < errors[0] / 5


def test_soflow_takes_a_step_of_the_sample_and_the_rest_of_the_network() -> None:
    objective = SoFlow(first=0.3, last=0.3, p=0.5, c=0.2)
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    batch, average = case.batch(4 * ROWS, 0), CallRecorder(nonlinear_test_net)
    loss = case.loss(Nets(record, average), batch, 0)
    rest, jumps, flows = record.calls  # the rest and its jump of the same rows: the same dropout
    assert not average.calls
    assert [call.grad for call in record.calls] == [False, True, True]
    assert jumps.d is not None
    assert flows.d is not None
    assert rest.d is not None
    n = ROWS
    assert len(jumps.x) == len(rest.x) == n
    t, d = torch.cat([jumps.t, flows.t]), torch.cat([jumps.d, flows.d])
    x_t = torch.cat([jumps.x, flows.x])
    assert d[:n].all()
    assert not d[n:].any()
    h = (1e-4 / d[:n]).clamp(min=0.3)
    torch.testing.assert_close(rest.t, t[:n] - h * d[:n])
    torch.testing.assert_close(rest.d, (1 - h) * d[:n])
    v = (x_t - batch.x) / t[:, None]  # eps - x
    torch.testing.assert_close(rest.x, x_t[:n] - (h * d[:n])[:, None] * v[:n])
    # X(t -> s) is X(l -> s)
    jump = x_t[:n] - d[:n, None] * nonlinear_test_net(x_t[:n], t[:n], d[:n])
    onward = rest.x - rest.d[:, None] * nonlinear_test_net(rest.x, rest.t, rest.d)
    quotient = ((jump - onward) / (h * d[:n])[:, None]).square().mean(1)
    expected = h / 2 * quotient / (quotient + 0.2) ** 0.5
    torch.testing.assert_close(loss.per_sample[:n], expected)
    error = (nonlinear_test_net(x_t[n:], t[n:], d[n:]) - v[n:]).square().mean(1)
    torch.testing.assert_close(loss.per_sample[n:], error / (error + 0.2) ** 0.5)


def test_soflows_times_and_step() -> None:
    objective = SoFlow(first=0.1, last=0.001)
    found = [objective.share(Progress(step, 100)) for step in (0, 50, 100)]
    assert found == pytest.approx([0.1, 0.01, 0.001])
    with pytest.raises(UserError, match="SoFlow takes no derivative"):
        SoFlow(tangent_step=0.1)
    with pytest.raises(UserError, match=r"last must be at most .*first=0\.1, got 0\.2"):
        SoFlow(last=0.2)
    x = torch.zeros(40_000, 1, dtype=torch.float64)
    t, d = objective.times(x, 20_000, g(0))
    logits = torch.logit(t)
    for rows, mean, std in ((slice(20_000), 0.2, 0.8), (slice(20_000, None), -0.2, 1.0)):
        assert float(logits[rows].mean()) == pytest.approx(mean, abs=0.03)
        assert float(logits[rows].std()) == pytest.approx(std, abs=0.02)
    s = torch.sigmoid(-1.0 + 0.8 * torch.randn(20_000, generator=g(1), dtype=torch.float64))
    assert float(d[:20_000].mean()) == pytest.approx(
        float((t[:20_000] - s).clamp(min=1e-4).mean()), abs=0.01
    )
    assert float(d[:20_000].min()) == pytest.approx(1e-4)
    assert not d[20_000:].any()


def test_soflows_step_is_not_arbitrarily_short() -> None:
    case, record = Case(SoFlow(jump_share=1.0)), CallRecorder(nonlinear_test_net)
    case.loss(Nets(record), case.batch(4000, 0), 0)
    rest, whole = record.calls
    assert float((whole.t - rest.t).min()) == pytest.approx(1e-4)


# -------------------------------------------------------------------------------------------- TiM


def test_tim_weighs_mean_flow_by_the_length_of_the_jump() -> None:
    objective = TiM(c=0.3, cosine=0.7, tangent_step=1e-4)
    case, rows = Case(objective), 200
    batch, net = case.batch(rows, 0), nonlinear_test_net
    loss = case.loss(case.nets(net), batch, 0)
    t, d = loss.t, loss.d
    assert d is not None
    assert torch.equal(d[:20], t[:20])  # a tenth jumps to the data, half do not jump
    assert ((d[20:100] > 0) & (d[20:100] < t[20:100])).all()
    assert (d[100:] == 0).all()
    record = CallRecorder(net)
    case.loss(case.nets(record), batch, 0)
    x_t = torch.empty_like(batch.x)
    x_t[:100], x_t[100:] = record.calls[2].x, record.calls[3].x
    v = (x_t - batch.x) / t[:, None]
    slope = (net(x_t + H * v, t + H, d + H) - net(x_t - H * v, t - H, d - H)) / (2 * H)
    F, target = net(x_t, t, d), v - d[:, None] * slope
    cos = (F * target).sum(1) / (F.norm(dim=1) * target.norm(dim=1))
    error = (F - target).square().mean(1) + 0.7 * (1 - cos)
    expected = error / (error + 0.3) / (t.tan() - (t - d).tan() + 1).sqrt()
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(UserError, match=r"to_data_share must be at most .*jump_share=0\.5"):
        TiM(to_data_share=0.6)


def test_the_cosine_moves_tims_minimum_off_the_exact_map() -> None:
    """On Gaussian data: a network a little larger has a lower loss, and without cosine none."""
    slopes = {}
    for cosine in (0.0, 1.0):
        case = Case(TiM(cosine=cosine, jump_share=0.0, to_data_share=0.0))
        exact = Case(TiM(cosine=0.0)).optimum
        assert exact is not None
        scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

        def net(
            x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None,
            scale: Tensor = scale, exact: Net = exact,
        ) -> Tensor:  # fmt: skip
            return scale * exact(x, t, d)

        loss = case.loss(Nets(net), case.batch(100_000, 0), 0).per_sample.mean()
        slopes[cosine] = float(torch.autograd.grad(loss, scale)[0])
    assert abs(slopes[0.0]) < 0.04  # of 100,000 draws
    assert slopes[1.0] < -0.1, slopes
    assert Case(TiM()).optimum is None


def test_differences_stay_within_the_times() -> None:
    """No time above 1, no jump of negative length, though the step is larger than either."""
    usual = CallRecorder(nonlinear_test_net)
    usual_case = Case(TiM())
    usual_case.loss(Nets(usual), usual_case.batch(100, 0), 0)
    ahead, behind = usual.calls[:2]
    assert float((ahead.t - behind.t).max()) == pytest.approx(2 * 0.005)
    objective = TiM(tangent_step=0.3, jump_share=1.0)
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    case.loss(case.nets(record), case.batch(1000, 0), 0)
    for call in record.calls:
        assert call.d is not None
        assert float(call.t.max()) < 1 + 1e-4
        assert float(call.d.min()) > -1e-4


# -------------------------------------------------------------------------------------------- TVM


def tvm_by_hand(net: Net, fixed: Net, ema: Net, x_t: Tensor, t: Tensor, d: Tensor) -> Tensor:
    """|dX/ds - v_ema(X, s)|^2 / D, the derivative by differences."""

    def X(d: Tensor) -> Tensor:
        return x_t - d[:, None] * net(x_t, t, d)

    end = x_t - d[:, None] * fixed(x_t, t, d)
    slope = (X(d - H) - X(d + H)) / (2 * H)  # s = t - d
    return (slope - ema(end, t - d, torch.zeros_like(t))).square().mean(1)


def test_tvm_and_its_gradient() -> None:
    case, theta = Case(TVM()), torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    batch, ema = case.batch(ROWS, 0), scaled(torch.tensor(0.8, dtype=torch.float64))
    online, average = CallRecorder(scaled(theta)), CallRecorder(ema)
    loss = case.loss(Nets(online, average), batch, 0)
    flow, velocity = online.calls[-1], average.calls[0]
    assert len(average.calls) == 1
    assert loss.d is not None
    t, d, r = loss.t, loss.d, flow.t
    torch.testing.assert_close(velocity.t, t - d)
    eps = (flow.x - (1 - r[:, None]) * batch.x) / r[:, None]
    x_t = (1 - t[:, None]) * batch.x + t[:, None] * eps  # of the same noise

    def by_hand(net: Net) -> Tensor:
        fixed = scaled(theta.detach())
        anchor = (net(flow.x, r, torch.zeros_like(r)) - (eps - batch.x)).square().mean(1)
        return tvm_by_hand(net, fixed, ema, x_t, t, d) + anchor

    torch.testing.assert_close(
        loss.per_sample, by_hand(scaled(theta.detach())), rtol=1e-6, atol=1e-8
    )
    (found,) = torch.autograd.grad(loss.per_sample.sum(), theta)
    near = [by_hand(scaled(theta.detach() + h)).sum() for h in (1e-4, -1e-4)]
    assert float(found) == pytest.approx(float(near[0] - near[1]) / 2e-4, rel=1e-4)


def test_tvms_times() -> None:
    case, record = Case(TVM()), CallRecorder(nonlinear_test_net)
    loss = case.loss(Nets(record, record), case.batch(40_000, 0), 0)
    assert loss.d is not None
    assert float(loss.t.max()) <= 1
    length, flow = torch.logit(loss.d), torch.logit(record.calls[-1].t)
    for logits, mean in ((length, -0.8), (flow, -0.4)):
        assert float(logits.mean()) == pytest.approx(mean, abs=0.03)
        assert float(logits.std()) == pytest.approx(1, abs=0.02)
    # s, given d: what is left of draws that are rejected above 1 - d
    s = loss.t - loss.d
    drawn = torch.sigmoid(-0.4 + torch.randn(40_000, generator=g(1), dtype=torch.float64))
    for low, high in ((0.0, 0.2), (0.4, 0.5), (0.6, 0.8)):
        rows = (loss.d > low) & (loss.d < high)
        accepted = drawn[rows][drawn[rows] <= 1 - loss.d[rows]]
        assert float(s[rows].mean()) == pytest.approx(float(accepted.mean()), abs=0.01)
        assert float(s[rows].std()) == pytest.approx(float(accepted.std()), abs=0.01)


# ------------------------------------------------------------------------------------------- FACM


def facm_by_hand(objective: FACM, net: Net, fixed: Net, x_t: Tensor, t: Tensor, v: Tensor):
    """The loss, (B,), its derivative by differences and what is not differentiated by ``fixed``."""
    one, zero = torch.ones_like(t), torch.zeros_like(t)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return x - t[:, None] * fixed(x, t, one)

    slope = (f(x_t + H * v, t + H) - f(x_t - H * v, t - H)) / (2 * H)  # of f: -g
    b = (1 - (1 - t) ** objective.relaxation)[:, None]
    target = fixed(x_t, t, one) + b * slope.clamp(-1, 1)
    error = (net(x_t, t, one) - target).square().mean(1)
    held = (fixed(x_t, t, one) - target).square().mean(1)
    flow = net(x_t, t, zero)
    cos = (flow * v).sum(1) / (flow.norm(dim=1) * v.norm(dim=1))
    a = torch.sin(math.pi / 2 * t)
    anchor = (flow - v).square().mean(1) + objective.cosine * (1 - cos)
    return a * error / (held + objective.c) ** objective.p + anchor


@pytest.mark.parametrize("cosine", [0.0, 0.7])
def test_facm_and_its_gradient(cosine: float) -> None:
    objective = FACM(c=0.2, relaxation=0.4, cosine=cosine)
    case = Case(objective)
    batch, theta = case.batch(ROWS, 0), torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    record = CallRecorder(scaled(theta))
    loss = case.loss(Nets(record), batch, 0)
    assert [float(c.d.unique()) for c in record.calls if c.d is not None] == [0, 1]
    x_t, t = record.calls[0].x, loss.t
    v = (x_t - batch.x) / t[:, None]
    fixed = scaled(theta.detach())
    expected = facm_by_hand(objective, fixed, fixed, x_t, t, v)
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-6, atol=1e-8)
    (found,) = torch.autograd.grad(loss.per_sample.sum(), theta)
    near = [
        facm_by_hand(objective, scaled(theta.detach() + h), fixed, x_t, t, v).sum()
        for h in (1e-4, -1e-4)
    ]
    assert float(found) == pytest.approx(float(near[0] - near[1]) / 2e-4, rel=1e-4)


def test_facms_times_are_of_log_normal_noise() -> None:
    case = Case(FACM())
    t = case.loss(case.nets(), case.batch(40_000, 0), 0).t
    tau = (math.pi / 2 * t).tan().log()
    assert float(tau.mean()) == pytest.approx(-0.8, abs=0.03)
    assert float(tau.std()) == pytest.approx(1.6, abs=0.03)


def test_facm_distillation_moves_along_the_teacher() -> None:
    case = Case(FACMDistillation(teacher_guidance=2.0))
    y = torch.zeros(ROWS, dtype=torch.int64)

    def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return x * (1 if y is None else 3)

    batch: Batch = case.batch(ROWS, 0, y=y)
    own = CallRecorder(nonlinear_test_net)
    loss = case.loss(case.nets(own, teacher=teacher), batch, 0)
    x_t = own.calls[0].x
    expected = facm_by_hand(
        FACM(),
        nonlinear_test_net,
        nonlinear_test_net,
        x_t,
        loss.t,
        5 * x_t,  # 1 + 2 (3 - 1)
    )
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-6, atol=1e-8)
