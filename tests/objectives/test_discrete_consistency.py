"""Consistency training and distillation on grids, iCT and ECT: grids, weights, distances."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives import (
    ECT,
    ICT,
    Batch,
    Consistency,
    ConsistencyDistillation,
    Loss,
    Nets,
    Progress,
)
from fewstep.objectives.conformance.case import (
    END,
    STD,
    Call,
    CallRecorder,
    Case,
    g,
    nonlinear_test_net,
    rel_error,
)
from fewstep.objectives.core import edm, times
from fewstep.objectives.core.batch_math import expand

EDMS = [ICT(), ECT(), ICT(sigma_d=1.3), ECT(sigma_d=1.3)]


def test_consistency_grid_doubles_in_equal_shares() -> None:
    grid = [Consistency(stages=7).intervals(Progress(step, 700)) for step in range(700)]
    assert [grid.count(2**k) for k in range(7)] == [100] * 7
    assert Consistency(stages=7).intervals(Progress(700, 700)) == 64


@pytest.mark.parametrize(
    ("objective", "n"), [(Consistency(stages=4), 8), (ConsistencyDistillation(intervals=8), 8)]
)
def test_neighbouring_times_on_the_whole_grid(
    objective: Consistency | ConsistencyDistillation, n: int
) -> None:
    case = Case(objective)
    online, ema = CallRecorder(nonlinear_test_net), CallRecorder(nonlinear_test_net)
    loss = case.loss(case.nets(online, ema), case.batch(4096, 0), 0)
    (here,), (there,) = online.calls, ema.calls
    assert sorted(set(loss.t.tolist())) == [i / n for i in range(1, n + 1)]
    torch.testing.assert_close(here.t - there.t, torch.full_like(here.t, 1 / n))
    counts = Counter(loss.t.tolist())
    assert max(counts.values()) < 1.2 * 4096 / n
    # |F - (x_t - f(x_s, s)) / t|^2
    f_s = there.x - expand(there.t, there.x) * nonlinear_test_net(there.x, there.t)
    target = (here.x - f_s) / expand(here.t, here.x)
    error = (nonlinear_test_net(here.x, here.t) - target).square().mean(1)
    torch.testing.assert_close(loss.per_sample, error)


@pytest.mark.parametrize("objective", [Consistency, ConsistencyDistillation])
@pytest.mark.parametrize("target", ["ema", "online"])
def test_target_network(
    objective: type[Consistency] | type[ConsistencyDistillation], target: str
) -> None:
    case, online, ema = (
        Case(objective(target=target)),
        CallRecorder(nonlinear_test_net),
        CallRecorder(nonlinear_test_net),
    )
    case.loss(case.nets(online, ema), case.batch(8, 0), 0)
    assert (len(online.calls), len(ema.calls)) == ((1, 1) if target == "ema" else (2, 0))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_distillation_follows_the_teacher_with_the_solvers_order(solver: str, order: int) -> None:
    errors = []
    t = torch.full((64,), 0.8, dtype=torch.float64)
    for h in (0.1, 0.05, 0.025):
        case = Case(ConsistencyDistillation(solver=solver))
        x = case.noise(64, 0)
        found = case.objective.step(case.teacher, x, t, t - h, None)  # type: ignore[attr-defined]
        errors.append((found - case.flow.map(x, t, t - h)).norm())
    falls = (-torch.stack(errors).log2().diff()).tolist()
    assert falls == pytest.approx([order + 1] * 2, abs=0.2)  # of a single step


def test_distillation_clips_and_guides() -> None:
    case = Case(ConsistencyDistillation(clip=0.5, intervals=4))
    ema = CallRecorder(nonlinear_test_net)
    case.loss(case.nets(nonlinear_test_net, ema), case.batch(64, 0), 0)
    assert float(ema.calls[0].x.abs().max()) == 0.5
    y = torch.arange(64) % 10
    for scale, calls in ((1.0, 2), (1.5, 4)):  # Heun
        case = Case(ConsistencyDistillation(teacher_guidance=scale))
        teacher = CallRecorder(case.teacher)
        case.loss(case.nets(teacher=teacher), case.batch(64, 0, y=y), 0)
        assert len(teacher.calls) == calls


# ---- iCT and ECT ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", EDMS, ids=lambda o: f"{o.title}-{o.sigma_d}")
def test_preconditioning_is_edms(objective: ICT | ECT) -> None:
    """f = c_skip x_sigma + c_out F(c_in x_sigma), F's sign aside."""
    sd, sigma = objective.sigma_d, torch.logspace(-2, 2, 64, dtype=torch.float64)
    case = Case(objective)
    x, eps, t = STD * case.noise(64, 0), case.noise(64, 1), objective.time(sigma)
    x_sigma, x_t = x + expand(sigma, x) * eps, objective.path.mix(x, eps, t)
    c_in = 1 / (sigma**2 + sd**2).sqrt()
    c_skip, c_out = sd**2 * c_in**2, sigma * sd * c_in
    asked = CallRecorder(nonlinear_test_net)
    found = objective.denoise(asked, x_t, t, None)
    assert rel_error(asked.calls[0].x, expand(c_in, x) * x_sigma) < 1e-12
    F = nonlinear_test_net(expand(c_in, x) * x_sigma, t)
    assert rel_error(found, expand(c_skip, x) * x_sigma - expand(c_out, x) * F) < 1e-12


def asked_twice(objective: ICT | ECT, progress: Progress = END) -> tuple[Loss, Call, Call]:
    """The loss of a network that is not an optimum, and its calls at sigma and at r < sigma."""
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    loss = case.loss(case.nets(record, None), case.batch(4096, 0), 0, progress)
    behind, here = record.calls
    assert (behind.grad, here.grad) == (False, True)
    return loss, here, behind


def level(objective: ICT | ECT, call: Call) -> Tensor:
    return objective.sigma_d * call.t.tan()


def denoised(objective: ICT | ECT, call: Call) -> Tensor:
    x_t = objective.sigma_d * call.x
    return objective.denoise(nonlinear_test_net, x_t, call.t, None)


def test_ict_doubles_its_levels() -> None:
    counts = Counter(ICT().levels(Progress(k, 800)) for k in range(800))
    assert counts == {10 * 2**k + 1: 100 for k in range(8)}
    assert ICT().levels(Progress(800, 800)) == 1281
    # K' is rounded down, so that the last grid gets what is left
    odd = Counter(ICT().levels(Progress(k, 807)) for k in range(807))
    assert odd[11] == 100
    assert odd[1281] == 107


def test_ict_grid_is_karras() -> None:
    grid = ICT().grid(11, torch.zeros(1))
    assert float(grid[0]) == pytest.approx(0.002)
    assert float(grid[-1]) == pytest.approx(80)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    assert float(grid[5]) == pytest.approx(middle)


def test_ict_proposal_is_a_discretised_log_normal() -> None:
    objective = ICT()
    grid = objective.grid(21, torch.zeros(1))
    mass = norm.cdf(grid.log().numpy(), -1.1, 2.0)
    expected = torch.from_numpy(mass[1:] - mass[:-1])
    torch.testing.assert_close(objective.proposal(grid), expected / expected.sum())
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    loss = case.loss(case.nets(record), case.batch(50_000, 0), 0, Progress(150, 800))
    above = 0.5 * loss.t.tan()
    drawn = (above[:, None] - grid[1:]).abs().argmin(1).bincount(minlength=20) / 50_000
    torch.testing.assert_close(drawn.double(), objective.proposal(grid), atol=0.01, rtol=0)


def test_ict_loss_in_numbers() -> None:
    objective = ICT()
    loss, here, behind = asked_twice(objective)
    sigma, r = level(objective, here), level(objective, behind)
    grid = objective.grid(1281, sigma)
    i = (sigma[:, None] - grid).abs().argmin(1)
    torch.testing.assert_close(sigma, grid[i])
    torch.testing.assert_close(r, grid[i - 1])
    error = (denoised(objective, here) - denoised(objective, behind)).square().sum(1)
    c = 0.00054 * math.sqrt(2)
    torch.testing.assert_close(
        loss.per_sample, ((error + c**2).sqrt() - c) / (grid[i] - grid[i - 1])
    )
    assert torch.equal(loss.t, here.t)


def test_ect_closes_in() -> None:
    def closer(sigma: float, stage: int) -> float:
        value = torch.tensor([sigma], dtype=torch.float64)
        return float(ECT().closer(value, Progress(100 * stage, 800)))

    n = 1 + 8 / (1 + math.e)  # at sigma = 1
    assert closer(1.0, 0) == 0  # a denoiser
    assert closer(1.0, 1) == pytest.approx(1 - n / 4)
    assert closer(1.0, 2) == pytest.approx(1 - n / 8)
    assert closer(1.0, 7) == closer(1.0, 8) == pytest.approx(1 - n / 256)
    assert closer(50.0, 0) == pytest.approx(25)  # n = 1
    assert closer(1e-9, 2) == pytest.approx(1e-9 * (1 - 5 / 8))  # n = 5


def test_ect_loss_in_numbers() -> None:
    objective = ECT()
    for progress in (Progress(0, 800), Progress(350, 800), END):
        loss, here, behind = asked_twice(objective, progress)
        sigma, r = level(objective, here), level(objective, behind)
        torch.testing.assert_close(r, objective.closer(sigma, progress))
        error = (denoised(objective, here) - denoised(objective, behind)).norm(dim=1)
        torch.testing.assert_close(loss.per_sample, error / (sigma - r))
    assert float(sigma.log().mean()) == pytest.approx(-1.1, abs=0.1)
    assert float(sigma.log().std()) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("q", [2.0, 4.0, 16.0, 256.0, 65_536.0])
def test_ect_is_finite_and_true_in_float32_to_its_last_stage(
    q: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = round(math.log(65_536) / math.log(q))
    with pytest.raises(
        UserError, match=rf"objective.stages may be {most} at most .* got {most + 1}"
    ):
        ECT(q=q, stages=most + 1)
    objective, x = ECT(q=q, stages=most), torch.randn(4096, 2, generator=g(0), dtype=torch.float64)

    def randn(like: Tensor, g: torch.Generator) -> Tensor:  # the same draws in both
        return torch.randn(like.shape, generator=g, dtype=torch.float64).to(like.dtype)

    monkeypatch.setattr(edm, "randn", randn)
    monkeypatch.setattr(times, "randn", randn)
    single, double = (
        objective.loss(Nets(nonlinear_test_net), Batch(x.to(dtype)), END, g(1)).per_sample
        for dtype in (torch.float32, torch.float64)
    )
    assert bool(single.isfinite().all())
    torch.testing.assert_close(single.double().mean(), double.mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("objective", [ICT(), ECT()], ids=lambda o: o.title)
def test_both_calls_draw_the_same_dropout_mask(objective: ICT | ECT) -> None:
    masks: list[Tensor] = []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        masks.append(torch.rand(4))
        return x

    case = Case(objective)
    case.loss(case.nets(net), case.batch(8, 0), 0)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], torch.rand(4, generator=g(99)))
