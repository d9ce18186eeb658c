"""TCM against its equations, and what a second stage may start from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.tiny import TINY, flat, taught, tiny, trainer
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.teacher import check_teacher
from fewstep.objectives import TCM, Nets, Progress
from fewstep.objectives.conformance.case import END, CallRecorder, Case, g, nonlinear_test_net

ROWS, SD = 64, 0.5


def f(net, x: Tensor, sigma: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """EDM's denoiser of x = data + sigma noise."""
    s = sigma[:, None]
    c_skip, c_out = SD**2 / (s**2 + SD**2), s * SD / (s**2 + SD**2).sqrt()
    return c_skip * x - c_out * net(x / (s**2 + SD**2).sqrt(), (sigma / SD).atan())


def first_stage(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    return 0.4 * x + t[:, None]


def test_the_loss_by_its_equations() -> None:
    objective = TCM(start=2.0, q=20.0, k=3.0, boundary=0.3, boundary_weight=0.2)
    case, online = Case(objective), CallRecorder(nonlinear_test_net)
    average, first = CallRecorder(nonlinear_test_net), CallRecorder(first_stage)
    batch, y = case.batch(ROWS, 0, y=torch.arange(ROWS)), torch.arange(ROWS)
    loss = objective.loss(Nets(online, average, snapshot=first), batch, END, g(0))
    assert not average.calls
    lower, upper = online.calls
    assert (lower.grad, upper.grad, first.calls[0].grad) == (False, True, False)
    for call in (lower, upper, *first.calls):
        assert call.y is not None
        assert torch.equal(call.y, y)
    torch.testing.assert_close(loss.t, upper.t)
    sigma, r = SD * upper.t.tan(), SD * lower.t.tan()
    n = math.ceil(0.3 * ROWS)
    torch.testing.assert_close(sigma[:n], torch.full((n,), 2.0, dtype=torch.float64))
    assert (sigma[n:] > 2).all()
    assert len(sigma[n:].unique()) == ROWS - n
    torch.testing.assert_close(r, sigma * (1 - (1 + 3 * torch.sigmoid(-sigma)) / 20))
    below = r < 2
    assert n < int(below.sum()) < ROWS
    x, x_r = SD * upper.x / upper.t.cos()[:, None], SD * lower.x / lower.t.cos()[:, None]
    eps = (x - batch.x) / sigma[:, None]
    torch.testing.assert_close(x_r, batch.x + r[:, None] * eps)
    target = torch.where(below[:, None], f(first_stage, x_r, r), f(nonlinear_test_net, x_r, r))
    error = (f(nonlinear_test_net, x, sigma) - target).norm(dim=1) / (sigma - r)
    expected = error[n:].mean() + 0.2 * error[:n].mean()
    torch.testing.assert_close(loss.per_sample.mean(), expected)
    torch.testing.assert_close(loss.per_sample[n:], error[n:] * ROWS / (ROWS - n))
    torch.testing.assert_close(loss.logs["loss_boundary"], error[:n].mean())


def test_levels_are_of_students_t_cut_off() -> None:
    objective = TCM(start=0.8, p_mean=0.3, p_std=0.5, degrees=0.2, sigma_max=50.0)
    z = objective.levels(torch.zeros(400_000, 1, dtype=torch.float64), g(0)).log()
    low, high = math.log(0.8), math.log(50.0)
    assert low <= float(z.min()) < low + 0.01
    assert high - 0.05 < float(z.max()) <= high
    edges = torch.linspace(low, high, 41, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    # what is said of Student's t: (1 + z^2 / nu)^-(1/2), z in units of the scale
    density = (1 + ((middle - 0.3) / 0.5) ** 2 / 0.2).rsqrt()
    found = torch.histogram(z, edges).hist / len(z)
    torch.testing.assert_close(found, density / density.sum(), rtol=0.05, atol=2e-3)


def test_the_first_stage_is_the_network_before_the_first_step() -> None:
    objective = TCM()
    assert [objective.takes_snapshot(Progress(k, 10)) for k in range(10)] == [True] + 9 * [False]
    with pytest.raises(UserError, match=r"objective\.start must be less than .*sigma_max=80, got"):
        TCM(start=90.0)


def test_a_run_starts_from_a_finished_one_and_keeps_it(tmp_path: Path) -> None:
    config = tiny(tmp_path, *taught(tmp_path, "tcm"), "training.steps=3", "training.lr=0.1")
    made = trainer(config)
    before = flat(made.net)
    made._update()
    made._update()
    assert made.snapshot is not None
    assert torch.equal(flat(made.snapshot), before)
    assert not torch.equal(flat(made.net), before)
    assert before.abs().max() > 0


def test_what_it_may_start_from(tmp_path: Path) -> None:
    goes_on = r"'tcm' goes on from a finished run: name it with teacher=RUN training.init=teacher"
    with pytest.raises(UserError, match=goes_on):
        check_teacher(tiny(tmp_path, "objective=tcm"))
    settings = taught(tmp_path, "tcm")
    with pytest.raises(UserError, match=goes_on):
        check_teacher(tiny(tmp_path, *settings, "training.init=auto"))
    check_teacher(tiny(tmp_path, *settings))
    for name in ("flow_matching", "facm"):  # one jumps as far as it is straight, one has flags
        other = prepare(tiny(tmp_path / "other", f"objective={name}", "training.steps=1"))
        run(other)
        with pytest.raises(UserError, match=f"trained with '{name}', which TCM cannot go on from"):
            check_teacher(
                compose(
                    [*TINY, ("runs", str(tmp_path)), "objective=tcm", "training.init=teacher",
                     ("teacher", str(other.path))]
                )
            )  # fmt: skip
