"""Paths and the bridge between them, in closed form (the checks hold them against calculus)."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.errors import UserError
from fewstep.experiments.data.toy import Gaussians, coefficients
from fewstep.objectives import (
    Consistency,
    FlowMatching,
    GaussianFlow,
    LinearPath,
    ProbabilityPath,
    Shortcut,
    Teacher,
    TrigPath,
)
from fewstep.objectives.conformance import run_checks
from fewstep.objectives.conformance.case import STD, CallRecorder, Case, rel_error
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.paths import convert_path

PATHS = [LinearPath(), LinearPath(0.05), TrigPath(0.5), TrigPath(1.7)]
X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
T = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_paths_pass_their_check(path: ProbabilityPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowMatching, "path", path)
    (finding,) = run_checks(FlowMatching(), ["path"])
    assert finding.passed, finding.detail


def test_mixtures_in_numbers() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    x, eps = torch.tensor([[2.0]]).double(), torch.tensor([[3.0]]).double()
    linear, noisy, trig = LinearPath(), LinearPath(0.1), TrigPath(0.5)
    assert linear.mix(x, eps, t).item() == pytest.approx(0.75 * 2 + 0.25 * 3)
    assert linear.velocity(x, eps, t).item() == pytest.approx(3 - 2)
    # (1 - t) x + (1 - (1 - s) (1 - t)) eps, which is Lipman's eq. 22 in our time
    assert noisy.mix(x, eps, t).item() == pytest.approx(0.75 * 2 + (1 - 0.9 * 0.75) * 3)
    assert noisy.velocity(x, eps, t).item() == pytest.approx(0.9 * 3 - 2)
    expected = math.cos(0.25) * 2 + math.sin(0.25) * 0.5 * 3
    assert trig.mix(x, eps, t).item() == pytest.approx(expected)
    assert trig.start(eps).item() == pytest.approx(1.5)


def test_shortcut_leaves_the_noise_it_is_told_to() -> None:
    assert Shortcut(sigma_min=1e-3).path == LinearPath(1e-3)


def test_trig_keeps_the_standard_deviation_of_its_data() -> None:
    t = torch.tensor([0.3, 0.8, 1.4], dtype=torch.float64)
    variance = GaussianFlow(TrigPath(0.5), 0.5).variance(t)
    torch.testing.assert_close(variance, torch.full_like(t, 0.25))


@pytest.mark.parametrize("sigma_d", [0.5, 1.0, 1.7])
def test_bridge_keeps_data_noise_and_log_snr(sigma_d: float) -> None:
    linear, trig = LinearPath(), TrigPath(sigma_d)
    moved, theta = convert_path(linear.mix(X, EPS, T), T, linear, trig)
    torch.testing.assert_close(theta, torch.atan2(T, sigma_d * (1 - T)))
    torch.testing.assert_close(moved, trig.mix(X, EPS, theta))
    torch.testing.assert_close(trig.log_snr(theta), linear.log_snr(T))
    back, again = convert_path(moved, theta, trig, linear)
    torch.testing.assert_close(again, T)
    torch.testing.assert_close(back, linear.mix(X, EPS, T))


def test_bridge_reaches_the_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    _, theta = convert_path(X[:2], ends, LinearPath(), TrigPath(0.5))
    torch.testing.assert_close(theta, torch.tensor([0, math.pi / 2], dtype=torch.float64))


def test_log_snr_and_share_of_noise_in_closed_form() -> None:
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    expected = 2 * torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    torch.testing.assert_close(LinearPath().log_snr(t), expected)
    torch.testing.assert_close(LinearPath().noise_fraction(t), t)
    share = 0.5 * t.sin() / (t.cos() + 0.5 * t.sin())
    torch.testing.assert_close(TrigPath(0.5).noise_fraction(t), share)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_uniform_times_fall_from_t_max_to_zero(path: ProbabilityPath) -> None:
    grid = path.times(4)
    assert grid == pytest.approx([path.t_max * k / 4 for k in (4, 3, 2, 1, 0)])
    assert grid[0] == path.t_max
    assert grid[-1] == 0


def test_given_times_begin_exactly_at_t_max() -> None:
    assert TrigPath(0.5).times([1.5708, 1.1, 0]) == [math.pi / 2, 1.1, 0.0]


@pytest.mark.parametrize("bad", [0, -3, [1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 1.0]])
def test_bad_times_are_refused(bad: int | list[float]) -> None:
    with pytest.raises(UserError):
        LinearPath().times(bad)


@pytest.mark.parametrize("bad", [2.5, None, math.nan, True, "four", torch.tensor(2.5)], ids=str)
def test_what_is_no_number_of_steps_is_named(bad: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"got {bad!r}")):
        LinearPath().times(bad)


@pytest.mark.parametrize("four", [np.int64(4), torch.tensor(4)], ids=["numpy", "torch"])
def test_any_integer_is_a_number_of_steps(four: Any) -> None:
    assert LinearPath().times(four) == LinearPath().times(4)


def test_an_objective_without_a_velocity_is_no_teacher() -> None:
    with pytest.raises(UserError, match="learns no velocity"):
        Teacher(Consistency(), lambda x, t, d=None, y=None: x, LinearPath())


# ---- a teacher's velocity on another path ------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("objective", [FlowMatching(), Shortcut(sigma_min=0.01)], ids=["fm", "sc"])
def test_teacher_gives_the_velocity_on_the_students_path(
    objective: FlowMatching | Shortcut, path: ProbabilityPath
) -> None:
    asked = CallRecorder(Case(objective).optimum)  # type: ignore[arg-type]
    teacher = Teacher(objective, asked, path)
    # not nearer to the data than the teacher's own path goes
    t = path.t_max * torch.linspace(0.05, 1, 64, dtype=torch.float64)
    y = torch.arange(64)
    assert rel_error(teacher(X, t, y=y), GaussianFlow(path, STD).velocity(X, t)) < 1e-9
    (call,) = asked.calls
    assert call.y is not None
    assert torch.equal(call.y, y)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_teacher_of_a_mixture(path: ProbabilityPath) -> None:
    mixture, source = Gaussians().mixture(), FlowMatching()

    def net(x, t, d=None, y=None):  # type: ignore[no-untyped-def]
        return mixture.velocity(x, *coefficients(LinearPath())(t))

    t = path.t_max * T
    x_t = path.mix(X[:, :2], EPS[:, :2], t)
    expected = mixture.velocity(x_t, *coefficients(path)(t))
    assert rel_error(Teacher(source, net, path)(x_t, t), expected) < 1e-9


def test_teacher_is_not_asked_for_jumps() -> None:
    teacher = Teacher(FlowMatching(), Case(FlowMatching()).test_net, LinearPath())
    with pytest.raises(ValueError, match="velocities"):
        teacher(X, T, T)


def test_gaussian_flow_solves_its_equation() -> None:
    """dx/dt = velocity along the map, by differences; and the map is there and back."""
    for path in PATHS:
        flow, t, h = GaussianFlow(path, STD), path.t_max * T, 1e-6
        x_u = flow.map(X, t, t / 2)
        ahead, behind = (flow.map(X, t, t / 2 + s) for s in (h, -h))
        assert rel_error(flow.velocity(x_u, t / 2), (ahead - behind) / (2 * h)) < 1e-7
        assert rel_error(flow.map(x_u, t / 2, t), X) < 1e-12
        average = flow.average_velocity(X, t, t / 2)
        assert rel_error(X - expand(t / 2, X) * average, x_u) < 1e-12
        assert rel_error(flow.average_velocity(X, t, 0 * t), flow.velocity(X, t)) < 1e-12
