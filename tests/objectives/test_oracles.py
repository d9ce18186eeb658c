"""Every objective against the closed forms of Gaussian data (tests/helpers/oracles.py).

Any change of sign, swapped time, dropped sigma_d or unshared noise makes one of these fail.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.oracles import KNOWN, SIGMA_D, Known, S, flow_map, flow_oracle, scm_oracle, velocity
from torch import Generator, Tensor

from fewstep.objectives import SCM, Batch, FlowMatching, Nets, Progress, Shortcut
from fewstep.objectives.samplers import integrate

END = Progress(999, 1000)
NAMES = sorted(KNOWN)


def gaussian(n: int, dimension: int = 2, seed: int = 0) -> Tensor:
    return S * torch.randn(n, dimension, dtype=torch.float64, generator=g(seed))


def g(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def loss_gradient(known: Known, theta: float, batches: int = 4) -> tuple[float, float]:
    """d/dtheta of the expected loss of F = oracle + theta x, with its standard error."""
    parts = []
    for i in range(batches):
        slope = torch.tensor(theta, dtype=torch.float64, requires_grad=True)

        def net(
            x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None,
            slope: Tensor = slope,
        ) -> Tensor:  # fmt: skip
            return known.oracle(x, t, d, y) + slope * x

        x = gaussian(40_000, seed=100 + i)
        loss = known.objective.loss(Nets(net, known.oracle), Batch(x), END, g(i))
        (gradient,) = torch.autograd.grad(loss.per_sample.mean(), slope)
        parts.append(gradient)
    values = torch.stack(parts)
    return float(values.mean()), float(values.std() / batches**0.5)


@pytest.mark.parametrize("name", NAMES)
def test_oracle_is_a_stationary_point_of_the_expected_loss(name: str) -> None:
    at, error = loss_gradient(KNOWN[name], 0.0)
    below, _ = loss_gradient(KNOWN[name], -0.1)
    above, _ = loss_gradient(KNOWN[name], +0.1)
    assert below < 0 < above
    assert abs(at) < 5 * error
    assert abs(at) < 0.05 * min(-below, above)


@pytest.mark.parametrize("steps", [1, 2, 4, [0.65, 0.3]])
def test_shortcut_oracle_samples_exactly(steps: int | list[float]) -> None:
    objective, noise = Shortcut(), gaussian(100) / S
    times = objective.path.times(steps if isinstance(steps, int) else [1.0, *steps, 0.0])
    sampled = objective.sample(KNOWN["shortcut"].oracle, noise, None, times, g())
    torch.testing.assert_close(sampled, S * noise)


@pytest.mark.parametrize("name", ["consistency", "scm"])
def test_consistency_oracle_samples_exactly_in_one_step(name: str) -> None:
    objective, noise = KNOWN[name].objective, gaussian(100) / S
    sampled = objective.sample(KNOWN[name].oracle, noise, None, objective.path.times(1), g())
    torch.testing.assert_close(sampled, S * noise)


@pytest.mark.parametrize("name", ["consistency", "scm"])
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_consistency_oracle_samples_the_data_in_more_steps(name: str, steps: int) -> None:
    objective, noise = KNOWN[name].objective, torch.randn(200_000, 1, generator=g(1)).double()
    times = objective.path.times(steps)
    sampled = objective.sample(KNOWN[name].oracle, noise, None, times, g(2))
    assert float(sampled.std()) == pytest.approx(S, rel=0.01)
    again = objective.sample(KNOWN[name].oracle, noise, None, times, g(3))
    assert not torch.equal(sampled, again)  # noised again with fresh noise


ORDERS = [("euler", 1), ("heun", 2), ("midpoint", 2)]


def slopes(errors: list[Tensor]) -> list[float]:
    """Orders of convergence from the errors at 32, 64, 128 and 256 steps."""
    error = torch.stack(errors)
    return (-(error[1:] / error[:-1]).log2()).tolist()


@pytest.mark.parametrize(("solver", "order"), ORDERS[:2])
def test_flow_sampler_converges_with_its_order(solver: str, order: int) -> None:
    objective, noise, errors = FlowMatching(solver=solver), gaussian(20) / S, []
    for steps in (32, 64, 128, 256):
        times = objective.path.times(steps)
        sampled = objective.sample(flow_oracle, noise, None, times, g())
        errors.append((sampled - S * noise).norm())
    assert slopes(errors) == pytest.approx([order] * 3, abs=0.12)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solvers_converge_with_their_order(solver: str, order: int) -> None:
    # dx/dt = t x; on the Gaussian flow the midpoint rule happens to be of order 3
    x, errors = gaussian(20), []
    for k in (32, 64, 128, 256):
        times = [1 - i / k for i in range(k + 1)]
        found = integrate(lambda x, t: t[:, None] * x, x, times, solver)
        errors.append((found - x * math.exp(-0.5)).norm())
    assert slopes(errors) == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_flow_solvers_reach_the_data(solver: str, calls: int) -> None:
    objective, noise, asked = FlowMatching(solver=solver), gaussian(20) / S, []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        asked.append(t)
        return flow_oracle(x, t)

    sampled = objective.sample(net, noise, None, objective.path.times(400), g())
    torch.testing.assert_close(sampled, S * noise, rtol=5e-3, atol=0)
    assert len(asked) == 400 * calls


def test_shortcut_at_its_finest_is_flow_matching() -> None:
    noise = gaussian(20) / S
    times = Shortcut().path.times(128)
    jumped = Shortcut().sample(KNOWN["shortcut"].oracle, noise, None, times, g())
    flowed = FlowMatching().sample(flow_oracle, noise, None, times, g())
    torch.testing.assert_close(jumped, flowed)


@pytest.mark.parametrize("target", ["ema", "online"])
def test_two_half_jumps_of_the_oracle_are_its_whole_jump(target: str) -> None:
    objective, oracle = Shortcut(bootstrap_share=1.0, target=target), KNOWN["shortcut"].oracle
    x = gaussian(700)
    loss = objective.loss(Nets(oracle, oracle), Batch(x), END, g())
    coarse = torch.arange(700) % 7 < 6  # at d = 2/M the halves are Euler steps: nearly exact only
    assert float(loss.per_sample[coarse].max()) < 1e-24
    assert 0 < float(loss.per_sample[~coarse].max()) < 1e-3


def test_shortcut_draws_every_length_and_only_multiples_of_it() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert d is not None
        seen.append((t, d))
        return x

    Shortcut().loss(Nets(net, KNOWN["shortcut"].oracle), Batch(gaussian(560)), END, g())
    t, d = seen[0]
    jumps = d > 0
    assert int(jumps.sum()) == 140  # a quarter
    assert sorted(set(d[jumps].tolist())) == [2.0**-k for k in range(6, -1, -1)]
    torch.testing.assert_close((t / d)[jumps], (t / d)[jumps].round())


def test_shortcut_clips_where_told() -> None:
    def huge(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 100.0)

    def zero(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    x = gaussian(70)
    free = Shortcut(bootstrap_share=1.0).loss(Nets(zero, huge), Batch(x), END, g())
    bound = Shortcut(bootstrap_share=1.0, clip=4.0).loss(Nets(zero, huge), Batch(x), END, g())
    assert free.per_sample.unique().tolist() == [1e4]
    assert bound.per_sample.unique().tolist() == [16.0]


@pytest.mark.parametrize("sigma_d", [0.5, 1.0, 1.3])
def test_scm_tangent_vanishes_on_the_exact_map(sigma_d: float) -> None:
    objective = SCM(sigma_d=sigma_d, tangent_warmup=0)
    path = objective.path

    def exact(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        x = sigma_d * u
        data = flow_map(path, x, t, torch.zeros_like(t))
        return (t.cos()[:, None] * x - data) / (t.sin()[:, None] * sigma_d)

    t = torch.linspace(0.05, 1.55, 200, dtype=torch.float64)
    x = gaussian(200)
    F, tangent = objective.tangent(exact, x, velocity(path, x, t), t, None, END)
    torch.testing.assert_close(F, exact(x / sigma_d, t))
    assert float(tangent.abs().max()) < 1e-12


def test_scm_before_warm_up_matches_the_velocity() -> None:
    objective = SCM(sigma_d=SIGMA_D, tangent_warmup=100)
    path, t, x = objective.path, torch.linspace(0.05, 1.5, 50, dtype=torch.float64), gaussian(50)

    def exact(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return velocity(path, SIGMA_D * u, t) / SIGMA_D

    v = velocity(path, x, t)
    _, at_start = objective.tangent(exact, x, v, t, None, Progress(0, 1000))
    _, half_way = objective.tangent(exact, x, v, t, None, Progress(50, 1000))
    _, warm = objective.tangent(exact, x, v, t, None, Progress(100, 1000))
    assert float(at_start.abs().max()) < 1e-12
    assert float(warm.abs().max()) > 0.01
    torch.testing.assert_close(half_way, warm / 2)


def test_scm_tangent_is_the_derivative_along_the_path() -> None:
    """g = cos(t) df/dt, by finite differences, for a network that is no oracle."""
    objective = SCM(sigma_d=SIGMA_D, tangent_warmup=0)

    def net(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.sin(2 * u + t[:, None]) * (1 + t[:, None] ** 2)

    x, eps = gaussian(50), gaussian(50, seed=1) / S
    t, h = torch.linspace(0.1, 1.5, 50, dtype=torch.float64), 1e-6
    path = objective.path
    after = objective.denoise(net, path.mix(x, eps, t + h), t + h, None)
    before = objective.denoise(net, path.mix(x, eps, t - h), t - h, None)
    expected = t.cos()[:, None] * (after - before) / (2 * h)
    _, tangent = objective.tangent(net, path.mix(x, eps, t), path.velocity(x, eps, t), t, None, END)
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)


def test_scm_loss_in_numbers() -> None:
    """exp(w)/D |g/(|g| + c)|^2 - w, its gradient -2 exp(w)/D g/(|g| + c), its times' spread."""
    objective = SCM(sigma_d=SIGMA_D, tangent_warmup=0, tangent_norm=0.3)
    x = gaussian(50_000)
    shift = torch.zeros(50_000, 2, dtype=torch.float64, requires_grad=True)

    class W(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return torch.full_like(t, 0.4)

    def net(u: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return scm_oracle(u, t) + shift

    loss = objective.loss(Nets(net, net, learned=W()), Batch(x), END, g())
    (gradient,) = torch.autograd.grad(loss.per_sample.sum(), shift)
    scale = math.exp(0.4) / 2
    step = -gradient / (2 * scale)
    size = step.norm(dim=1)
    torch.testing.assert_close(loss.per_sample, scale * size**2 - 0.4)
    assert float(size.max()) < 1
    torch.testing.assert_close(
        loss.logs["tangent_norm"], (0.3 * size / (1 - size)).mean(), rtol=1e-9, atol=0
    )
    tau = (SIGMA_D * loss.t.tan()).log()
    assert float(tau.mean()) == pytest.approx(objective.p_mean, abs=0.03)
    assert float(tau.std()) == pytest.approx(objective.p_std, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_network_is_asked_inside_the_time_domain_only(name: str) -> None:
    known = KNOWN[name]
    t_max = known.objective.path.t_max
    asked: list[tuple[float, float]] = []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert t.shape == (len(x),)
        assert (d is not None) == known.objective.uses_jump
        lowest = t if d is None else t - d
        asked.append((float(lowest.min()), float(t.max())))
        if d is not None:
            assert float(d.min()) >= 0
        return torch.zeros_like(x) + 0 * t[:, None]

    for step in (0, 300, 700, 999):
        known.objective.loss(Nets(net, net), Batch(gaussian(2000)), Progress(step, 1000), g(step))
    for steps in (1, 2, 3, 7, 128, 300):
        times = known.objective.path.times(steps)
        known.objective.sample(net, gaussian(10), None, times, g())
    assert min(low for low, _ in asked) >= -1e-12
    assert max(high for _, high in asked) <= t_max + 1e-12
    assert max(high for _, high in asked) > 0.9 * t_max


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_per_sample_and_fixed_by_its_generator(name: str) -> None:
    known = KNOWN[name]

    def loss(seed: int) -> Tensor:
        nets = Nets(known.oracle, known.oracle)
        return known.objective.loss(nets, Batch(gaussian(64)), END, g(seed)).per_sample

    assert loss(1).shape == (64,)
    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_online_network_gets_gradients(name: str) -> None:
    known = KNOWN[name]
    online, behind = (torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for _ in "ab")

    def scaled(scale: Tensor):  # type: ignore[no-untyped-def]
        def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            return scale * known.oracle(x, t, d, y)

        return net

    nets = Nets(scaled(online), scaled(behind))
    known.objective.loss(nets, Batch(gaussian(64)), END, g()).per_sample.mean().backward()
    assert online.grad is not None
    assert behind.grad is None


def test_consistency_grid_doubles_in_equal_shares() -> None:
    objective = type(KNOWN["consistency"].objective)(stages=7)
    grid = [objective.intervals(Progress(step, 700)) for step in range(700)]
    assert [grid.count(2**k) for k in range(7)] == [100] * 7
    assert objective.intervals(Progress(700, 700)) == 64


@pytest.mark.parametrize("name", NAMES)
def test_labels_reach_the_network(name: str) -> None:
    known, y = KNOWN[name], torch.arange(64) % 10
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert y is not None
        seen.append(y)
        return known.oracle(x, t, d, y)

    known.objective.loss(Nets(net, net), Batch(gaussian(64), y), END, g())
    known.objective.sample(net, gaussian(64), y, known.objective.path.times(2), g())
    assert all(torch.equal(labels, y[: len(labels)]) for labels in seen)
