"""AYF's two objectives against their equations, and autoguidance; derivatives by differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives import (
    AYFEMD,
    AYFLMD,
    OBJECTIVES,
    SCD,
    FlowMatching,
    GaussianFlow,
    LinearPath,
    MeanFlow,
    Net,
    Teacher,
)
from fewstep.objectives.ayf import MapDistillation
from fewstep.objectives.conformance.case import END, CallRecorder, Case, nonlinear_test_net
from fewstep.objectives.core.base import Batch, Progress
from fewstep.objectives.core.teachers_flow import TeachersFlow
from fewstep.objectives.facm import FACMDistillation

ROWS = 64
H = 1e-5
T = torch.linspace(0.3, 0.9, ROWS, dtype=torch.float64)
D = torch.linspace(0.25, 0.1, ROWS, dtype=torch.float64)
X = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHT = torch.tensor(1.1, dtype=torch.float64)


def scaled(theta: Tensor) -> Net:
    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return theta * nonlinear_test_net(theta * x, t, d)

    return net


def velocity(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """A teacher that is no Gaussian's."""
    assert d is None
    return (2 * x).sin() + t[:, None]


def end(net: Net, x: Tensor, t: Tensor, d: Tensor) -> Tensor:
    return x - d[:, None] * net(x, t, d)


def eulerian(net: Net) -> Tensor:
    """dX/dt along the teacher, where the jump ends at the same time."""
    v = velocity(X, T)
    ends = [end(net, X + h * v, T + h, D + h) for h in (H, -H)]
    return (ends[0] - ends[1]) / (2 * H)


def lagrangian(net: Net) -> Tensor:
    """dX/ds - v(X, s)."""
    ends = [end(net, X, T, D - h) for h in (H, -H)]
    return (ends[0] - ends[1]) / (2 * H) - velocity(end(net, X, T, D), T - D)


def gap_of(objective: MapDistillation, net: Net, r: float) -> tuple[Tensor, Tensor]:
    nets = Case(objective).nets(net, teacher=velocity)
    return objective.gap(nets, Batch(X), X, torch.zeros_like(X), T, D, r)


@pytest.mark.parametrize("objective", [AYFEMD(), AYFLMD()], ids=["EMD", "LMD"])
def test_gap_and_gradient_are_the_theorems(objective: MapDistillation) -> None:
    """The gradient is E sign(t - s) f dX/dt, or E sign(s - t) f (dX/ds - v), over d: w' = 1/d."""
    fixed, theta = scaled(WEIGHT), WEIGHT.clone().requires_grad_()
    F, gap = gap_of(objective, scaled(theta), 1.0)
    torch.testing.assert_close(F, fixed(X, T, D))
    theorem = eulerian(fixed) if isinstance(objective, AYFEMD) else lagrangian(fixed)
    sign = 1 if isinstance(objective, AYFEMD) else -1
    torch.testing.assert_close(gap, -sign * theorem, rtol=1e-6, atol=1e-7)
    assert not gap.requires_grad
    (found,) = torch.autograd.grad((F - F.detach() + gap).square().sum() / 2, theta)
    of_f = (sign * theorem * end(scaled(theta), X, T, D) / D[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(of_f, theta)[0], rtol=1e-5, atol=1e-7)


def test_without_its_derivative_the_gap_is_that_of_a_straight_line() -> None:
    net = scaled(WEIGHT)
    F = net(X, T, D)
    torch.testing.assert_close(gap_of(AYFEMD(), net, 0.0)[1], F - velocity(X, T))
    ends = velocity(X - D[:, None] * F, T - D)
    torch.testing.assert_close(gap_of(AYFLMD(), net, 0.0)[1], F - ends)
    half = (gap_of(AYFEMD(), net, 0.0)[1] + gap_of(AYFEMD(), net, 1.0)[1]) / 2
    torch.testing.assert_close(gap_of(AYFEMD(), net, 0.5)[1], half)


def test_below_one_emd_averages_the_velocity_with_more_weight_near_the_end() -> None:
    """Where its gap is 0 at r: F = int_0^1 v(x(s + d u^r)) du along the flow; exact if r = 1."""
    flow, r = GaussianFlow(AYFEMD().path, 0.5), 0.7
    u, weights = (torch.tensor(a) for a in legendre(60))

    def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert d is not None
        out = torch.zeros_like(x)
        for at, weight in zip(u, weights, strict=True):
            tau = t - d + d * at**r
            out = out + weight * flow.velocity(flow.map(x, t, tau), tau)
        return out

    def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return flow.velocity(x, t)

    objective = AYFEMD()
    nets = Case(objective).nets(F, teacher=teacher)
    gap = objective.gap(nets, Batch(X), X, X, T, D, r)[1]
    assert float(gap.abs().max()) < 1e-4
    assert float(objective.gap(nets, Batch(X), X, X, T, D, 1.0)[1].abs().max()) > 0.01


def legendre(n: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def test_normalisation_bounds_the_step() -> None:
    for c in (0.1, 5.0):
        case = Case(AYFEMD(tangent_norm=c, tangent_share=1.0))
        loss = case.loss(case.nets(nonlinear_test_net), case.batch(ROWS, 0), 0)
        plain = Case(AYFEMD(tangent_norm=None, tangent_share=1.0))
        squares = plain.loss(plain.nets(nonlinear_test_net), plain.batch(ROWS, 0), 0).per_sample
        size = (2 * squares).sqrt()  # D = 2
        torch.testing.assert_close(loss.per_sample, (size / (size + c)) ** 2 / 2)


def test_warm_up() -> None:
    objective = AYFEMD(tangent_warmup=100)
    at = [objective.share(Progress(step, 1000)) for step in (0, 50, 100, 999)]
    assert at == pytest.approx([0, 0.5, 0.99, 0.99])
    assert objective.share(Progress(25, 100)) == pytest.approx(0.5)  # over at most half
    assert AYFEMD(tangent_warmup=0, tangent_share=1).share(Progress(0, 10)) == 1
    flow = GaussianFlow(objective.path, 0.5)
    assert objective.gaussian_optimum(flow, END) is None  # at r = 0.99 it is another
    assert replace(objective, tangent_share=1.0).gaussian_optimum(flow, END) is not None


class AtMeanFlowsTimes(AYFEMD):
    def times(self, x: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        return MeanFlow().times(x, len(x), g)


def test_times_are_of_logit_normal_lengths() -> None:
    case = Case(AYFEMD())
    loss = case.loss(case.nets(), case.batch(40_000, 0), 0)
    assert loss.d is not None
    lengths, end = loss.d.logit(), (loss.t - loss.d) / (1 - loss.d)
    assert float(lengths.mean()) == pytest.approx(-0.8, abs=0.02)
    assert float(lengths.std()) == pytest.approx(1, abs=0.02)
    assert float(end.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(end.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert float(loss.t.max()) <= 1


def test_emd_of_the_datas_velocity_is_mean_flow() -> None:
    """Their appendix: without warm-up and normalisation the gradient is MeanFlow's."""
    mean_flow = Case(MeanFlow(jump_share=1, p=0))
    ayf = Case(AtMeanFlowsTimes(tangent_norm=None, tangent_share=1.0, tangent_warmup=0))
    batch, gradients, losses = mean_flow.batch(ROWS, 0), [], []
    record = CallRecorder(nonlinear_test_net)
    times = mean_flow.loss(mean_flow.nets(record), batch, 0).t[:, None]
    v = (record.calls[0].x.detach() - batch.x) / times  # x_t = x + t v

    def data(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return v

    for case in (mean_flow, ayf):
        theta = WEIGHT.clone().requires_grad_()
        loss = case.loss(case.nets(scaled(theta), teacher=data), batch, 0).per_sample
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss.sum(), theta)[0])
    torch.testing.assert_close(losses[0], 2 * losses[1])  # a sum over D = 2 there
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


# ---------------------------------------------------------------------------------- autoguidance


def weak(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    assert d is None
    return x.cos()


DISTILLATIONS = [name for name in OBJECTIVES.names() if isinstance(OBJECTIVES[name], TeachersFlow)]


def test_distillations_of_a_teachers_flow_are_known() -> None:
    assert {"scd", "facm_distillation", "ayf_emd", "ayf_lmd"} <= set(DISTILLATIONS)


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_autoguidance_moves_away_from_the_weak_teacher(name: str) -> None:
    plain = OBJECTIVES[name]
    assert isinstance(plain, TeachersFlow)
    objective = replace(plain, autoguidance=3.0)
    nets = Case(plain).nets(teacher=velocity)
    nets._weak_teacher = weak
    v = objective.teachers_velocity(nets, X, T, None)
    torch.testing.assert_close(v, 3 * velocity(X, T) - 2 * weak(X, T))
    torch.testing.assert_close(plain.teachers_velocity(nets, X, T, None), velocity(X, T))
    assert objective.needs_weak_teacher
    assert not plain.needs_weak_teacher
    assert objective.step_cost() == pytest.approx(plain.step_cost() + 1 / 3)
    nets._weak_teacher = None
    with pytest.raises(UserError, match=r"needs Nets\.weak_teacher: pass"):
        objective.teachers_velocity(nets, X, T, None)


def test_a_weak_teacher_changes_the_loss() -> None:
    for objective in (SCD(autoguidance=2.0), FACMDistillation(autoguidance=2.0)):
        case = Case(objective)
        nets, batch = case.nets(nonlinear_test_net), case.batch(ROWS, 0)
        same = case.loss(nets, batch, 0).per_sample  # both teachers are the same there
        nets._weak_teacher = weak
        assert not torch.allclose(case.loss(nets, batch, 0).per_sample, same)


def test_a_weak_teacher_on_another_path_is_refused() -> None:
    scd = SCD(autoguidance=2.0)
    nets = Case(scd).nets()
    nets._weak_teacher = Teacher(FlowMatching(), weak, LinearPath())
    with pytest.raises(UserError, match=r"Nets\.weak_teacher gives velocities on LinearPath"):
        scd.teachers_velocity(nets, X, T, None)


def test_one_guidance_at_a_time() -> None:
    with pytest.raises(UserError, match=r"autoguidance=2 and objective\.teacher_guidance=3"):
        AYFEMD(autoguidance=2.0, teacher_guidance=3.0)
    with pytest.raises(UserError, match=r"objective\.tangent_share must be .*1\.5"):
        AYFEMD(tangent_share=1.5)
