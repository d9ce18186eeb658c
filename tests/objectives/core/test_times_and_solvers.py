"""Where training looks, and how well flows are solved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.objectives import FlowMatching, LinearPath, Shortcut, TrigPath
from fewstep.objectives.conformance.case import STD, CallRecorder, Case, g, nonlinear_test_net
from fewstep.objectives.core.batch_math import randint
from fewstep.objectives.core.samplers import integrate
from fewstep.objectives.core.times import logit_normal, path_times, trig_times

MANY = torch.zeros(50_000, 1, dtype=torch.float64)


def test_logit_normal_has_its_moments() -> None:
    logit = logit_normal(MANY, g(0), -0.4, 1.3).logit()
    assert float(logit.mean()) == pytest.approx(-0.4, abs=0.03)
    assert float(logit.std()) == pytest.approx(1.3, abs=0.03)


def test_times_of_a_path_by_name() -> None:
    linear, trig = LinearPath(), TrigPath(0.5)
    uniform = path_times(MANY, g(0), linear, "uniform", 5.0, 9.0)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.var()) == pytest.approx(1 / 12, abs=0.002)
    assert torch.equal(path_times(MANY, g(0), trig, "uniform", 5.0, 9.0), uniform * math.pi / 2)
    noise_level = 0.5 * path_times(MANY, g(0), trig, "logit_normal", 1.0, 0.5).tan()
    chosen = path_times(MANY, g(0), linear, "logit_normal", 1.0, 0.5).logit()
    torch.testing.assert_close(noise_level.log(), chosen)  # the same noise levels on both
    assert float(chosen.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(chosen.std()) == pytest.approx(0.5, abs=0.02)


def test_trig_times_are_log_normal_in_the_noise_level() -> None:
    sigma = 0.5 * trig_times(MANY, g(0), TrigPath(0.5), -1.0, 1.4).tan()
    assert float(sigma.log().mean()) == pytest.approx(-1.0, abs=0.03)
    assert float(sigma.log().std()) == pytest.approx(1.4, abs=0.03)


def test_integers_have_bounds_of_their_own() -> None:
    high = torch.tensor([2, 4, 9]).repeat_interleave(2000)
    drawn = randint(1, high, g(0)).view(3, 2000)
    for row, top in zip(drawn, (1, 3, 8), strict=True):
        assert sorted(set(row.tolist())) == list(range(1, top + 1))


def test_flow_matching_trains_where_it_is_told() -> None:
    case = Case(FlowMatching(times="logit_normal", t_mean=2.0, t_std=0.3))
    logit = case.loss(case.nets(nonlinear_test_net), case.batch(20_000, 0), 0).t.logit()
    assert float(logit.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.3, abs=0.02)


ORDERS = [("euler", 1), ("heun", 2), ("midpoint", 2)]


def orders(errors: list[Tensor]) -> list[float]:
    """Orders of convergence from the errors at 32, 64, 128 and 256 steps."""
    return (-torch.stack(errors).log2().diff()).tolist()


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solvers_converge_with_their_order(solver: str, order: int) -> None:
    # dx/dt = t x; on the Gaussian flow the midpoint rule happens to be of order 3
    x, errors = torch.randn(20, 2, generator=g(0), dtype=torch.float64), []
    for k in (32, 64, 128, 256):
        times = [1 - i / k for i in range(k + 1)]
        found = integrate(lambda x, t: t[:, None] * x, x, times, solver)
        errors.append((found - x * math.exp(-0.5)).norm())
    assert orders(errors) == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), ORDERS[:2])
def test_flow_sampler_converges_with_its_order(solver: str, order: int) -> None:
    case, errors = Case(FlowMatching(solver=solver)), []
    noise = case.noise(20, 0)
    for steps in (32, 64, 128, 256):
        errors.append((case.sample(case.test_net, noise, steps) - STD * noise).norm())
    assert orders(errors) == pytest.approx([order] * 3, abs=0.12)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_solvers_cost_what_they_say_and_stay_in_the_step(solver: str, calls: int) -> None:
    case = Case(FlowMatching(solver=solver))
    record = CallRecorder(case.test_net)
    sampled = case.sample(record, case.noise(20, 0), [1.0, 0.6, 0.0])
    assert sampled.shape == (20, 2)
    asked = [float(c.t[0]) for c in record.calls]
    expected = {"euler": [1.0, 0.6], "heun": [1.0, 0.6, 0.6, 0.0], "midpoint": [1.0, 0.8, 0.6, 0.3]}
    assert asked == pytest.approx(expected[solver])
    assert len(asked) == 2 * calls


def test_adaptive_solver_keeps_its_tolerance() -> None:
    errors, calls = [], []
    for tolerance in (1e-2, 1e-4, 1e-8):
        case = Case(FlowMatching(solver="adaptive", tolerance=tolerance))
        record = CallRecorder(case.test_net)
        noise = case.noise(20, 0)
        errors.append(float((case.sample(record, noise, 1) - STD * noise).abs().max()))
        calls.append(len(record.calls))
        assert errors[-1] < 10 * tolerance
    assert errors[0] > errors[1] > errors[2]
    assert calls[0] < calls[1] < calls[2]


def test_adaptive_solver_that_cannot_says_so() -> None:
    with pytest.raises(FloatingPointError, match="gave up"):
        integrate(lambda x, t: x * float("nan"), torch.ones(1, 1), [1.0, 0.0], "adaptive")


def test_shortcut_at_its_finest_is_flow_matching() -> None:
    shortcut, flow = Case(Shortcut()), Case(FlowMatching())
    noise = flow.noise(20, 0)
    jumped, flowed = (
        shortcut.sample(shortcut.test_net, noise, 128),
        flow.sample(flow.test_net, noise, 128),
    )
    torch.testing.assert_close(jumped, flowed)
