"""Progressive distillation's stages; reflow's pairs, stored and live."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.objectives import LiveReflow, Progress, ProgressiveDistillation, Reflow
from fewstep.objectives.conformance.case import (
    END,
    STD,
    CallRecorder,
    Case,
    nonlinear_test_net,
    rel_error,
)
from fewstep.objectives.core.batch_math import expand


def test_stages_have_equal_shares_and_freeze_at_their_start() -> None:
    objective = ProgressiveDistillation(finest=16)
    stages = [objective.stage(Progress(k, 400)) for k in range(400)]
    assert [stages.count(k) for k in range(4)] == [100] * 4
    assert objective.stage(Progress(400, 400)) == 3
    frozen_copy = [k for k in range(400) if objective.takes_snapshot(Progress(k, 400))]
    assert frozen_copy == [100, 200, 300]


@pytest.mark.parametrize("stage", range(4))
def test_each_stage_halves_the_steps_of_the_one_before(stage: int) -> None:
    objective = ProgressiveDistillation(finest=16)
    case, progress = Case(objective), Progress(100 * stage + 50, 400)
    before = Progress(100 * stage - 50, 400)
    ideal = objective.gaussian_optimum(case.flow, progress)
    former = CallRecorder(
        objective.gaussian_optimum(case.flow, before) if stage else nonlinear_test_net
    )
    teacher, online = CallRecorder(case.teacher), CallRecorder(ideal)
    nets = case.nets(online, snapshot=former, teacher=teacher)
    loss = case.loss(nets, case.batch(512, 0), 0, progress)
    behind, silent = (former, teacher) if stage else (teacher, former)
    assert not silent.calls
    first, second = behind.calls
    steps = 8 >> stage
    d = 1 / steps
    assert sorted(set(loss.t.tolist())) == [i / steps for i in range(1, steps + 1)]
    assert torch.equal(first.t, loss.t)
    torch.testing.assert_close(second.t, loss.t - d / 2)
    # two steps of the stage before are one of this stage; Euler's are not quite the flow's
    assert float(loss.per_sample.mean()) < (1e-24 if stage else 1e-2)
    times = case.path.times(steps)
    noise = case.noise(20, 0)
    sampled = objective.sample(ideal, noise, None, times, torch.Generator())
    assert rel_error(sampled, STD * noise) < 1e-12


def test_target_in_numbers() -> None:
    objective = ProgressiveDistillation(clip=0.6)
    x, t = Case(objective).noise(64, 0), torch.full((64,), 0.75, dtype=torch.float64)
    between = (x - 0.25 * nonlinear_test_net(x, t)).clamp(-0.6, 0.6)
    expected = (nonlinear_test_net(x, t) + nonlinear_test_net(between, t - 0.25)) / 2
    torch.testing.assert_close(objective.two_steps(nonlinear_test_net, x, t, 0.5, None), expected)


def test_progressive_guidance_acts_on_the_teacher_alone() -> None:
    objective = ProgressiveDistillation(teacher_guidance=2.0)
    case, y = Case(objective), torch.arange(8)
    for progress, calls in ((Progress(0, 700), 4), (END, 2)):
        behind = CallRecorder(nonlinear_test_net)
        nets = case.nets(snapshot=behind, teacher=behind)
        case.loss(nets, case.batch(8, 0, y=y), 0, progress)
        assert len(behind.calls) == calls


# ---- reflow ------------------------------------------------------------------------------------


def euler(case: Case, eps: Tensor, steps: int) -> Tensor:
    """Noise taken to data by the exact velocity and Euler's rule."""
    x = eps
    for i in range(steps, 0, -1):
        t = torch.full((len(eps),), i / steps, dtype=eps.dtype)
        x = x - case.flow.velocity(x, t) / steps
    return x


def test_pairs_are_the_teachers_flow() -> None:
    case = Case(Reflow(pair_steps=20))
    eps = case.noise(64, 0)
    assert rel_error(case.paired_data(eps), euler(case, eps, 20)) < 1e-12
    fine = Case(Reflow(pair_steps=64, pair_solver="heun"))
    assert rel_error(fine.paired_data(eps), STD * eps) < 1e-3


def test_pairs_are_guided() -> None:
    def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 1.0 if y is None else 3.0)

    eps, y = Case(Reflow()).noise(8, 0), torch.arange(8)
    for scale, speed in ((1.0, 3.0), (2.0, 5.0)):
        pairs = Reflow(teacher_guidance=scale).make_pairs(teacher, eps, y)
        torch.testing.assert_close(pairs, eps - speed)
        live = LiveReflow(pair_guidance=scale).make_pairs(teacher, eps, y)
        torch.testing.assert_close(live, eps - speed)


def test_reflow_regresses_the_pairs_own_line() -> None:
    case, record = Case(Reflow()), CallRecorder(nonlinear_test_net)
    batch = case.batch(4096, 0)
    loss = case.loss(case.nets(record), batch, 0)
    assert batch.eps is not None
    (call,) = record.calls
    x_t = expand(1 - call.t, call.x) * batch.x + expand(call.t, call.x) * batch.eps
    torch.testing.assert_close(call.x, x_t)
    error = (nonlinear_test_net(call.x, call.t) - (batch.eps - batch.x)).square().mean(1)
    torch.testing.assert_close(loss.per_sample, error)
    assert float(loss.t.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(loss.t.var()) == pytest.approx(1 / 12, abs=0.01)
    # straight lines are learned without a rest
    assert float(case.loss(case.nets(), batch, 0).per_sample.max()) < 1e-20


@pytest.mark.parametrize("target", ["ema", "online"])
def test_live_pairs_come_from_the_network_named(target: str) -> None:
    case, online, ema = (
        Case(LiveReflow(target=target)),
        CallRecorder(nonlinear_test_net),
        CallRecorder(nonlinear_test_net),
    )
    loss = case.loss(case.nets(online, ema), case.batch(68, 0), 0)
    assert (len(online.calls), len(ema.calls)) == ((1, 8) if target == "ema" else (9, 0))
    behind = (ema if target == "ema" else online).calls[:8]
    assert [float(c.t[0]) for c in behind] == [k / 8 for k in range(8, 0, -1)]
    assert all(len(c.x) == 9 and c.d is not None and (c.d == 0).all() for c in behind)
    assert loss.d is not None
    assert loss.d.tolist() == [1.0] * 9 + [0.0] * 59  # an eighth, rounded up


def test_live_pairs_are_straight() -> None:
    case = Case(LiveReflow(reflow_share=0.5))
    record = CallRecorder(case.test_net)
    batch = case.batch(64, 0)
    loss = case.loss(case.nets(record), batch, 0)
    assert float(loss.per_sample[:32].max()) < 1e-20
    assert float(loss.per_sample[32:].min()) > 1e-6
    first, trained = record.calls[0], record.calls[-1]
    x = euler(case, first.x, 8)
    t = expand(trained.t[:32], x)
    torch.testing.assert_close(trained.x[:32], (1 - t) * x + t * first.x)
    assert torch.equal(trained.d[32:], torch.zeros(32).double())  # type: ignore[index]


def test_live_flow_rows_are_flow_matching() -> None:
    case, record = Case(LiveReflow(reflow_share=0.5)), CallRecorder(nonlinear_test_net)
    batch = case.batch(64, 0)
    loss = case.loss(case.nets(record), batch, 0)
    call, x = record.calls[-1], batch.x[32:]
    t = call.t[32:]
    eps = (call.x[32:] - expand(1 - t, x) * x) / expand(t, x)
    error = (
        (nonlinear_test_net(call.x[32:], t, torch.zeros(32).double()) - (eps - x)).square().mean(1)
    )
    torch.testing.assert_close(loss.per_sample[32:], error)


def test_live_rows_keep_their_labels() -> None:
    case, record = Case(LiveReflow()), CallRecorder(nonlinear_test_net)
    true = torch.arange(64) % 10
    dropped = torch.full_like(true, 10)
    batch = replace(case.batch(64, 0, y=dropped), y_true=true)
    case.loss(case.nets(record), batch, 0)
    first, trained = record.calls[0], record.calls[-1]
    assert first.y is not None
    assert trained.y is not None
    assert torch.equal(first.y, true[:8])
    assert torch.equal(trained.y, torch.cat([true[:8], dropped[8:]]))


def test_fine_sampling_follows_the_datas_own_flow() -> None:
    """From ``finest`` steps on d = 0 is asked for; coarser steps take the straight lines."""
    case = Case(LiveReflow(finest=16))
    noise = case.noise(8, 0)
    for steps, flag in ((8, 1.0), (16, 0.0), (32, 0.0)):
        record = CallRecorder(case.test_net)
        case.sample(record, noise, steps)
        assert all(c.d is not None and (c.d == flag).all() for c in record.calls)
