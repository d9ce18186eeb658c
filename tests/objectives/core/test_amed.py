"""AMED: begins as the midpoint rule, and learns where a step should look."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data.toy import GaussianMixture, coefficients
from fewstep.objectives import LinearPath, ProbabilityPath, TrigPath
from fewstep.objectives.conformance.case import g
from fewstep.objectives.core import amed
from fewstep.objectives.core.amed import Amed, StepPredictor, mean_value_step, solve, train
from fewstep.objectives.core.batch_math import full
from fewstep.objectives.core.samplers import integrate

MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64),
    0.2,
    torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
)


def noise(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=g(seed), dtype=torch.float64)


def stretching(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """dx/dt = a(t) x with a = 2 t - 0.5; x_u = x_t exp(u^2 - t^2 - (u - t) / 2)."""
    return (2 * t - 0.5).unsqueeze(1) * x


def predictor(scale: float = 0.0) -> StepPredictor:
    return StepPredictor(scale, g(0)).double()


def test_untrained_it_is_the_midpoint_rule() -> None:
    x, times = noise(20), [1.0, 0.6, 0.0]
    found = solve(stretching, predictor(0.3), x, times)
    torch.testing.assert_close(found, integrate(stretching, x, times, "midpoint"))


def test_a_step_by_hand_for_any_share_and_scale() -> None:
    x, t, u, net = noise(20), 0.9, 0.4, predictor(0.2)
    with torch.no_grad():
        net.out.bias.copy_(torch.tensor([0.8, -0.5]))
    share, scale = 1 / (1 + math.exp(-0.8)), 1 + 0.2 * math.tanh(-0.5)
    s = t + share * (u - t)
    factor = 1 + scale * (u - t) * (2 * s - 0.5) * (1 + (s - t) * (2 * t - 0.5))
    found = mean_value_step(stretching, net, x, full(t, x), full(u, x))
    torch.testing.assert_close(found, factor * x)
    known = mean_value_step(stretching, net, x, full(t, x), full(u, x), stretching(x, full(t, x)))
    torch.testing.assert_close(known, found)


def test_what_is_predicted_stays_in_its_bounds_and_knows_the_row() -> None:
    net, x = predictor(0.1), 100 * noise(50)
    with torch.no_grad():
        net.out.weight.normal_(0, 1, generator=g(1))
    net.requires_grad_(False)
    share, scale = net(x, 3 * x, full(1.0, x), full(0.5, x))
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    assert float((scale - 1).abs().max()) <= 0.1 + 1e-12
    x = x / 100
    for a, b in ((x, -x), (x, x.flip(1))):  # three means over a row: they see neither of these
        for one, other in zip(net(a, 2 * a, full(1.0, x), full(0.5, x)),
                              net(b, 2 * b, full(1.0, x), full(0.5, x)), strict=True):  # fmt: skip
            torch.testing.assert_close(one, other)
    told = [(x, x, 1.0, 0.5), (2 * x, x, 1.0, 0.5), (x, 2 * x, 1.0, 0.5), (x, -x, 1.0, 0.5),
            (x, x, 0.9, 0.5), (x, x, 1.0, 0.4)]  # fmt: skip
    shares = [net(a, b, full(t, x), full(u, x))[0] for a, b, t, u in told]
    assert all(not torch.allclose(shares[0], other) for other in shares[1:])


def test_it_finds_the_one_time_at_which_a_step_is_exact() -> None:
    """With c = 1 and a linear flow that time is the root of one equation."""
    t, u = 0.9, 0.3
    exact = math.exp(u**2 - t**2 - (u - t) / 2)

    def missed(s: float) -> float:
        return 1 + (u - t) * (2 * s - 0.5) * (1 + (s - t) * (2 * t - 0.5)) - exact

    assert missed(0.6) > 0.02  # the midpoint rule
    settings = Amed(trajectories=64, teacher_steps=100, scale=0.0)
    net, before, after = train(stretching, noise(64), None, [t, u], settings, g(1))
    assert after[0] < 1e-4 * before[0]
    x = noise(5, 3)
    share, _ = net(x, stretching(x, full(t, x)), full(t, x), full(u, x))
    root = (brentq(missed, 0.6, t) - t) / (u - t)
    assert share.tolist() == pytest.approx([root] * 5, abs=0.02)


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(0.5)])
@pytest.mark.parametrize("steps", [1, 2])
def test_it_beats_the_midpoint_rule_on_a_mixture(path: ProbabilityPath, steps: int) -> None:
    """On noise that it was not trained with, against the solution to 1e-10."""
    at, times = coefficients(path), path.times(steps)

    def field(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return MIXTURE.velocity(x, *at(t))

    start = path.start(noise(200, 7))
    exact = MIXTURE.flow_map(start, path.t_max, 0.0, at)
    net, before, after = train(field, path.start(noise(256)), None, times, Amed(), g(1))
    learned = float((solve(field, net, start, times) - exact).norm())
    midpoint = float((integrate(field, start, times, "midpoint") - exact).norm())
    assert learned < 0.92 * midpoint
    assert sum(after) < 0.75 * sum(before)
    assert len(before) == len(after) == steps


def test_each_row_keeps_its_condition() -> None:
    """Rows that are told another's condition would miss the teacher's points by far."""
    y = torch.arange(100) % 3

    def field(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        return stretching(x, t) * (1 + y).unsqueeze(1)

    settings = Amed(trajectories=100, teacher_steps=16, scale=0.01)
    _, before, after = train(field, noise(100), y, [0.8, 0.4], settings, g(0))
    assert after[0] < 0.2 * before[0]


def test_the_teacher_passes_through_the_solvers_times() -> None:
    times, start = [1.0, 0.7, 0.0], noise(10)
    states, slopes = amed._teacher(stretching, start, None, times, 9)  # 5 steps for each
    fine = [1 - 0.3 * i / 5 for i in range(5)] + [0.7 - 0.7 * i / 5 for i in range(5)] + [0.0]
    for i, (t, u) in enumerate(pairwise(times)):
        between = [s for s in fine if u - 1e-9 <= s <= t]
        expected = integrate(stretching, states[i], between, "midpoint")
        torch.testing.assert_close(states[i + 1], expected)
        torch.testing.assert_close(slopes[i], stretching(states[i], full(t, start)))
    assert len(states) == 3
    exact = start * math.exp(-0.5)
    assert float((states[2] - exact).abs().max()) < 5e-3


def test_passes_are_counted_and_draws_depend_on_the_generator_alone() -> None:
    rows = {True: 0, False: 0}

    def field(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        rows[torch.is_grad_enabled()] += len(x)
        return stretching(x, t)

    settings, times = Amed(trajectories=70, teacher_steps=5), [1.0, 0.5, 0.2, 0.0]
    torch.manual_seed(0)
    nets = [train(field, noise(70), None, times, settings, g(seed))[0] for seed in (0, 0, 1)]
    assert 3 * amed.passes(settings, 3) == rows[False] + 2 * rows[True]
    weights = [net.state_dict() for net in nets]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert not torch.equal(weights[0]["out.bias"], weights[2]["out.bias"])
    assert not any(p.requires_grad for p in nets[0].parameters())


@pytest.mark.parametrize(("name", "value"), [("trajectories", 0), ("teacher_steps", 0),
                                             ("scale", -0.1)])  # fmt: skip
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"evaluation.samplers.{name} must be at least"):
        Amed(**{name: value})  # type: ignore[arg-type]
