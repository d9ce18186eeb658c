"""DPM-Solver++(2M): its order, its ends at infinite log-SNR, and what it costs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data.toy import GaussianMixture, coefficients
from fewstep.objectives import FlowMatching, LinearPath, ProbabilityPath, Reflow, TrigPath
from fewstep.objectives.conformance.case import CallRecorder, Case, g
from fewstep.objectives.core.batch_math import full
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.samplers import Field, integrate

PATHS = [LinearPath(), TrigPath(0.5)]
MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64),
    0.3,
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)


def mixture_field(path: ProbabilityPath) -> Field:
    at = coefficients(path)
    return lambda x, t: MIXTURE.velocity(x, *at(t))


def noise(rows: int = 40) -> Tensor:
    return torch.randn(rows, 2, generator=g(0), dtype=torch.float64)


def log_ratio(path: ProbabilityPath, t: float) -> float:
    at = torch.tensor(t, dtype=torch.float64)
    return math.log(float(path.alpha(at) / (path.sigma(at) * path.noise_std)))


@pytest.mark.parametrize("path", PATHS)
def test_of_order_2_between_finite_log_snrs(path: ProbabilityPath) -> None:
    start, end, at = 0.9 * path.t_max, 0.1 * path.t_max, coefficients(path)
    x = 0.7 * noise()
    exact, errors = MIXTURE.flow_map(x, start, end, at), []
    low, high = log_ratio(path, start), log_ratio(path, end)
    for k in (64, 128, 256, 512):
        ratios = [math.exp(low + (high - low) * i / k) for i in range(k + 1)]
        one = torch.ones(1, dtype=torch.float64)
        times = [float(path.time_of(r * one, one)) for r in ratios]
        found = integrate(mixture_field(path), x, times, "dpmpp", path=path)
        errors.append(float((found - exact).norm()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2, 2, 2], abs=0.1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mixture", [False, True])
def test_of_order_2_but_for_a_logarithm_from_noise_to_data(
    path: ProbabilityPath, mixture: bool
) -> None:
    """Steps uniform in time grow in log-SNR toward the ends: the error is ~ log(k) / k^2."""
    start, flow, errors = path.start(noise()), GaussianFlow(path, 0.7), []
    field = mixture_field(path) if mixture else flow.velocity
    one, zero = full(path.t_max, start), full(0.0, start)
    exact = flow.map(start, one, zero)
    if mixture:
        exact = MIXTURE.flow_map(start, path.t_max, 0.0, coefficients(path))
    for k in (512, 1024, 2048):
        found = integrate(field, start, path.times(k), "dpmpp", path=path)
        errors.append(float((found - exact).norm()) * k**2 / math.log(k))
    assert errors[1:] == pytest.approx(errors[:-1], rel=0.06)


@pytest.mark.parametrize("path", [*PATHS, LinearPath(0.05)])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_exact_where_the_data_are_one_point(path: ProbabilityPath, steps: int) -> None:
    """Then D is that point at every time, and each step is exact."""
    point, start = torch.tensor([1.0, -2.0], dtype=torch.float64), path.start(noise())

    def field(x: Tensor, t: Tensor) -> Tensor:
        a, b = (c.unsqueeze(1) for c in (path.alpha(t), path.sigma(t) * path.noise_std))
        return path.velocity(point.expand_as(x), (x - a * point) / b, t)

    found = integrate(field, start, path.times(steps), "dpmpp", path=path)
    expected = path.mix(point.expand_as(start), noise(), full(0.0, start))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("path", [*PATHS, LinearPath(0.05)])
def test_its_steps_are_those_of_the_paper(path: ProbabilityPath) -> None:
    """DDIM's from pure noise, after it and to sigma = 0; else with alpha (1 - exp(-h))."""
    times, field = (
        [path.t_max, *(path.t_max * t for t in (0.8, 0.5, 0.3)), 0.0],
        mixture_field(path),
    )
    x, last, expected = path.start(noise()), torch.zeros(0), []
    for i, (t, u) in enumerate(pairwise(times)):
        now, then = full(t, x), full(u, x)
        data, eps = path.data_and_noise(x, field(x, now), now)
        stepped = path.mix(data, eps, then)
        if i in (2, 3) and path.sigma(then)[0] > 0:
            h, before = log_ratio(path, u) - log_ratio(path, t), log_ratio(path, t)
            r = (before - log_ratio(path, times[i - 1])) / h
            blend = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
            scale = (path.sigma(then) / path.sigma(now)).unsqueeze(1)
            stepped = scale * x - path.alpha(then).unsqueeze(1) * (math.exp(-h) - 1) * blend
        x, last = stepped, data
        expected.append(x)
    for i in range(1, len(times)):
        found = integrate(field, path.start(noise()), times[: i + 1], "dpmpp", path=path)
        if i < len(times) - 1 or path.sigma(full(0.0, x))[0] == 0:
            torch.testing.assert_close(found, expected[i - 1], rtol=1e-12, atol=1e-12)
        assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("interpolant", ["linear", "trig"])
def test_a_flow_samples_with_it_at_one_call_a_step(interpolant: str) -> None:
    case = Case(FlowMatching(solver="dpmpp", interpolant=interpolant))
    for steps in (1, 2, 5):
        record = CallRecorder(case.test_net)
        found = case.sample(record, case.noise(20, 0), steps)
        assert [float(c.t[0]) for c in record.calls] == pytest.approx(case.path.times(steps)[:-1])
        start = case.path.start(case.noise(20, 0))
        times, field = case.path.times(steps), case.flow.velocity
        torch.testing.assert_close(found, integrate(field, start, times, "dpmpp", path=case.path))
    euler = Case(FlowMatching(interpolant=interpolant))
    few, many = ([c.sample(c.test_net, c.noise(20, 0), k) for c in (case, euler)] for k in (2, 16))
    torch.testing.assert_close(*few)  # both steps are DDIM's
    assert not torch.allclose(*many)
    assert "tolerance" not in case.objective.sampler_settings()


def test_a_solver_that_is_trained_is_none_of_an_objective() -> None:
    with pytest.raises(
        UserError, match=r"objective.solver: amed .* evaluation.samplers=\[\{solver"
    ):
        FlowMatching(solver="amed")
    with pytest.raises(UserError, match=r"objective.pair_solver 'rk9'.*dpmpp"):
        Reflow(pair_solver="rk9")
