"""SoFlow, TiM, TVM and FACM against their equations; derivatives by differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives import FACM, LSD, SCM, TVM, MeanFlow, Net, Nets, Objective, SoFlow, TiM
from fewstep.objectives.conformance.case import END, CallRecorder, Case, nonlinear_test_net
from fewstep.objectives.core.base import Batch, Progress
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


# ----------------------------------------------------------------------------------------- SoFlow


def test_soflow_becomes_mean_flow() -> None:
    """Its gradient, with and without the adaptive weight, as its step falls."""
    for p in (0.0, 1.0):
        flow = gradient(MeanFlow(p=p, jump_share=0.5))
        errors = [
            abs(float(gradient(SoFlow(p=p, jump_share=0.5, first=h, last=h)) / flow - 1))
            for h in (1e-3, 1e-5)
        ]
        assert errors[1] < 1e-4
        assert errors[1] < errors[0] / 50


def test_soflow_takes_a_step_of_the_sample_and_the_rest_of_the_network() -> None:
    objective, h = SoFlow(jump_share=1.0, first=0.3, last=0.3, p=0.0), 0.3
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    batch = case.batch(ROWS, 0)
    loss = case.loss(Nets(record), batch, 0)
    rest, whole = record.calls
    assert (rest.grad, whole.grad) == (False, True)
    assert whole.d is not None
    assert rest.d is not None
    torch.testing.assert_close(rest.t, whole.t - h * whole.d)
    torch.testing.assert_close(rest.d, (1 - h) * whole.d)
    eps = (whole.x - (1 - whole.t[:, None]) * batch.x) / whole.t[:, None]
    v = eps - batch.x
    torch.testing.assert_close(rest.x, whole.x - h * whole.d[:, None] * v)
    # X(t -> s) is X(l -> s)
    jump = whole.x - whole.d[:, None] * nonlinear_test_net(whole.x, whole.t, whole.d)
    onward = rest.x - rest.d[:, None] * nonlinear_test_net(rest.x, rest.t, rest.d)
    apart = ((jump - onward) / whole.d[:, None]).square().sum(1)
    torch.testing.assert_close(loss.per_sample, apart / h)


def test_soflows_step_falls_exponentially() -> None:
    objective = SoFlow(first=0.1, last=0.001)
    found = [objective.share(Progress(step, 101)) for step in (0, 50, 100)]
    assert found == pytest.approx([0.1, 0.01, 0.001])
    with pytest.raises(UserError, match="SoFlow takes no derivative"):
        SoFlow(tangent_step=0.1)


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


def test_tvm_is_lsd_toward_the_average_with_the_flow_at_the_ends() -> None:
    objective = TVM()
    case, rows = Case(objective), 40_000
    online, ema = CallRecorder(nonlinear_test_net), CallRecorder(nonlinear_test_net)
    batch = case.batch(rows, 0)
    loss = case.loss(Nets(online, ema), batch, 0)
    (velocity,) = ema.calls
    jump = loss.d[: rows // 2] if loss.d is not None else torch.empty(0)
    torch.testing.assert_close(velocity.t, loss.t[: rows // 2] - jump)
    assert velocity.d is not None
    assert not velocity.d.any()
    assert case.auxiliary is None
    ends, flow = loss.t[: rows // 2] - jump, loss.t[rows // 2 :]
    for times in (ends, flow):  # the smaller of two uniform draws
        assert float(times.mean()) == pytest.approx(1 / 3, abs=0.01)
        assert float(times.std()) == pytest.approx(1 / math.sqrt(18), abs=0.01)
    lsd = LSD(flow_share=0.5, weight="none", target="ema")
    same = Case(lsd).loss(Nets(online, ema), batch, 0)
    torch.testing.assert_close(same.per_sample[: rows // 2], loss.per_sample[: rows // 2])


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
