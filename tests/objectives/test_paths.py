"""Paths against calculus."""

import math

import pytest
import torch
from torch.func import jvp

from fewstep.errors import UserError
from fewstep.objectives.paths import Linear, Path, Trig, linear_to_trig, trig_to_linear

PATHS = [Linear(), Trig(0.5), Trig(1.7)]
X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def times(path: Path) -> torch.Tensor:
    return torch.linspace(0.01, path.t_max - 0.01, 64, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_coefficients_have_the_derivatives_they_claim(path: Path) -> None:
    t = times(path)
    for f, df in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        _, derivative = jvp(f, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(df(t), derivative)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_velocity_is_the_derivative_of_the_mixture(path: Path) -> None:
    t, h = times(path), 1e-6
    difference = (path.mix(X, EPS, t + h) - path.mix(X, EPS, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(X, EPS, t), difference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ends_are_data_and_noise_of_its_own_size(path: Path) -> None:
    zero, end = torch.zeros(64).double(), torch.full((64,), path.t_max, dtype=torch.float64)
    torch.testing.assert_close(path.mix(X, EPS, zero), X)
    torch.testing.assert_close(path.mix(X, EPS, end), path.noise_std * EPS, atol=1e-12, rtol=0)


def test_trig_keeps_the_standard_deviation_of_its_data() -> None:
    path, t = Trig(0.5), torch.tensor([0.3, 0.8, 1.4], dtype=torch.float64)
    variance = path.alpha(t) ** 2 * 0.5**2 + (path.sigma(t) * path.noise_std) ** 2
    torch.testing.assert_close(variance, torch.full_like(t, 0.25))


@pytest.mark.parametrize("sigma_d", [0.5, 1.0, 1.7])
def test_bridge_keeps_data_noise_and_log_snr(sigma_d: float) -> None:
    linear, trig = Linear(), Trig(sigma_d)
    t = times(linear)
    moved, theta = linear_to_trig(linear.mix(X, EPS, t), t, sigma_d)
    torch.testing.assert_close(moved, trig.mix(X, EPS, theta))
    torch.testing.assert_close(trig.log_snr(theta), linear.log_snr(t))
    back, again = trig_to_linear(moved, theta, sigma_d)
    torch.testing.assert_close(again, t)
    torch.testing.assert_close(back, linear.mix(X, EPS, t))


def test_log_snr_in_closed_form() -> None:
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    expected = 2 * torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    torch.testing.assert_close(Linear().log_snr(t), expected)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_uniform_times_fall_from_t_max_to_zero(path: Path) -> None:
    grid = path.times(4)
    assert grid == pytest.approx([path.t_max * k / 4 for k in (4, 3, 2, 1, 0)])
    assert grid[0] == path.t_max
    assert grid[-1] == 0


@pytest.mark.parametrize("bad", [0, -3, [1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 1.0]])
def test_bad_times_are_refused(bad: int | list[float]) -> None:
    with pytest.raises(UserError):
        Linear().times(bad)
