"""Shortcut models row by row: which lengths, times, labels and targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from fewstep.objectives import OBJECTIVES, Batch, Progress, Shortcut, ShortcutContinuous
from fewstep.objectives.conformance.case import (
    Call,
    CallRecorder,
    Case,
    nonlinear_test_net,
    rel_error,
)
from fewstep.objectives.core.batch_math import expand

KVFRANS = OBJECTIVES["shortcut_kvfrans"]
assert isinstance(KVFRANS, Shortcut)


def online(objective: Shortcut | ShortcutContinuous, batch: Batch) -> tuple[Call, Tensor | None]:
    """What the trained network was asked, and the lengths the loss says it trained."""
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    loss = case.loss(case.nets(record, ema=nonlinear_test_net), batch, 0)
    (call,) = [c for c in record.calls if c.grad]
    return call, loss.d


@pytest.mark.parametrize("target", ["ema", "online"])
def test_two_half_jumps_of_the_ideal_are_its_whole_jump(target: str) -> None:
    held = Case(Shortcut(bootstrap_share=1.0, target=target))
    loss = held.loss(held.nets(), held.batch(700, 0), 0)
    coarse = torch.arange(700) % 7 < 6  # at d = 2/M the halves are Euler steps: nearly exact only
    assert float(loss.per_sample[coarse].max()) < 1e-24
    assert 0 < float(loss.per_sample[~coarse].max()) < 1e-3


@pytest.mark.parametrize("objective", [Shortcut(), ShortcutContinuous()], ids=["discrete", "any"])
@pytest.mark.parametrize("target", ["ema", "online"])
def test_targets_come_from_the_network_named(
    objective: Shortcut | ShortcutContinuous, target: str
) -> None:
    held = Case(replace(objective, target=target, bootstrap_share=0.5))
    ema, on = CallRecorder(nonlinear_test_net), CallRecorder(nonlinear_test_net)
    held.loss(held.nets(on, ema), held.batch(64, 0), 0)
    assert len(ema.calls) == (2 if target == "ema" else 0)
    assert len(on.calls) == (1 if target == "ema" else 3)


def test_targets_in_numbers() -> None:
    """The two halves of a network that is not an optimum."""
    held = Case(Shortcut(bootstrap_share=1.0))
    record = CallRecorder(nonlinear_test_net)
    loss = held.loss(held.nets(record, record), held.batch(70, 0), 0)
    whole = next(c for c in record.calls if c.grad)
    x, t, d = whole.x, whole.t, loss.d
    assert d is not None
    asked = torch.where(d <= 2 / 128, 0.0, d / 2).double()
    s1 = nonlinear_test_net(x, t, asked)
    s2 = nonlinear_test_net(x - expand(d / 2, x) * s1, t - d / 2, asked)
    error = (nonlinear_test_net(x, t, d) - (s1 + s2) / 2).square().mean(1)
    torch.testing.assert_close(loss.per_sample, error)


def test_text_draws_every_length_in_turn_and_only_multiples_of_it() -> None:
    held = Case(Shortcut())
    call, d = online(Shortcut(), held.batch(28_000, 0))
    assert d is not None
    assert call.d is not None
    torch.testing.assert_close(call.d, d)
    assert (d[:7000] > 0).all()  # a quarter
    assert (d[7000:] == 0).all()
    assert Counter(d[:7000].tolist()) == {2.0**-k: 1000 for k in range(7)}
    multiples = (call.t / d)[:7000]
    torch.testing.assert_close(multiples, multiples.round())
    assert multiples.min() >= 1
    assert {1.0, 64.0} <= set(multiples.tolist())
    assert (call.t[7000:] * 128 % 1 != 0).all()  # flow matching at any time


def test_code_groups_lengths_and_gives_the_rest_to_the_longest() -> None:
    call, d = online(KVFRANS, Case(KVFRANS).batch(512, 0))
    assert d is not None
    assert call.d is not None
    assert Counter(d[:64].tolist()) == {2.0**-k: 9 for k in range(1, 7)} | {1.0: 10}
    assert d[:9].tolist() == [1 / 64] * 9  # the finest first
    assert (d[64:] == 0).all()
    assert (call.d[64:] == 1 / 128).all()  # flow matching is asked for as 1/M


def test_dt_bias_gives_a_quarter_each_to_the_two_longest() -> None:
    objective = replace(KVFRANS, dt_bias=True)
    _, d = online(objective, Case(objective).batch(512, 0))
    assert d is not None
    # 64 rows: 64/2/7 = 4 each for 1/64, ..., 1/4; 16 for 1/2; 16 for 1, and the 12 left over
    expected = {2.0**-k: 4 for k in range(2, 7)} | {0.5: 16, 1.0: 28}
    assert Counter(d[:64].tolist()) == expected


def test_code_trains_flow_matching_on_the_grid() -> None:
    call, _ = online(KVFRANS, Case(KVFRANS).batch(4096, 0))
    steps = call.t[512:] * 128
    torch.testing.assert_close(steps, steps.round())
    assert (steps.min(), steps.max()) == (1, 128)


def test_halves_of_the_finest_are_flow_matching() -> None:
    for objective, flow in ((Shortcut(), 0.0), (KVFRANS, 1 / 128)):
        held, ema = Case(objective), CallRecorder(nonlinear_test_net)
        loss = held.loss(held.nets(nonlinear_test_net, ema), held.batch(512, 0), 0)
        assert loss.d is not None
        n = int((loss.d > 0).sum())
        for c in ema.calls:
            assert c.d is not None
            finest = loss.d[:n] == 2 / 128
            assert (c.d[finest] == flow).all()
            torch.testing.assert_close(c.d[~finest], loss.d[:n][~finest] / 2)


def test_guidance_acts_on_the_finest_group_only() -> None:
    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 0.3 if y is None else 0.5)

    def zero(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    held, ema = Case(KVFRANS), CallRecorder(net)
    y = torch.arange(512) % 10
    loss = held.loss(held.nets(zero, ema), held.batch(512, 0, y=y), 0)
    assert [len(c.x) for c in ema.calls] == [64, 9, 64, 9]
    assert [c.y is None for c in ema.calls] == [False, True, False, True]
    guided = 0.3 + 1.5 * (0.5 - 0.3)
    torch.testing.assert_close(loss.per_sample[:9], torch.full((9,), guided**2).double())
    torch.testing.assert_close(loss.per_sample[9:64], torch.full((55,), 0.25).double())


def test_clipping_of_targets_and_between_the_halves() -> None:
    def huge(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 100.0)

    def zero(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    for clip, target in ((None, 1e4), (4.0, 16.0)):
        held = Case(Shortcut(bootstrap_share=1.0, clip=clip))
        ema = CallRecorder(huge)
        loss = held.loss(held.nets(zero, ema), held.batch(70, 0), 0)
        assert loss.per_sample.unique().tolist() == [target]
        between = float(ema.calls[1].x.abs().max())
        assert between > 40 if clip is None else between == 4


@pytest.mark.parametrize("objective", [Shortcut(), ShortcutContinuous()], ids=["discrete", "any"])
def test_bootstrap_rows_keep_their_labels(objective: Shortcut | ShortcutContinuous) -> None:
    true = torch.arange(64) % 10
    dropped = torch.full_like(true, 10)
    call, _ = online(objective, replace(Case(objective).batch(64, 0, y=dropped), y_true=true))
    assert call.y is not None
    assert torch.equal(call.y, torch.cat([true[:16], dropped[16:]]))


def test_share_of_bootstrap_rows() -> None:
    for share, expected in ((0.0, 0), (0.25, 16), (1.0, 64)):
        _, d = online(Shortcut(bootstrap_share=share), Case(Shortcut()).batch(64, 0))
        assert d is not None
        assert int((d > 0).sum()) == expected


# ---- continuous times and lengths --------------------------------------------------------------


def test_continuous_times_and_lengths() -> None:
    objective = ShortcutContinuous(bootstrap_share=0.5, smallest=0.1)
    call, d = online(objective, Case(objective).batch(40_000, 0))
    assert d is not None
    assert call.d is not None
    torch.testing.assert_close(call.d, d)
    t, d = call.t[:20_000], d[:20_000]
    assert (d >= 0.1).all()
    assert (t <= 1).all()
    assert (d <= t).all()
    assert float(t.mean()) == pytest.approx((0.1 + 1) / 2, abs=0.01)  # U(0.1, 1)
    assert float(t.var()) == pytest.approx(0.9**2 / 12, abs=0.003)
    share = (d - 0.1) / (t - 0.1)  # U(0, 1)
    assert float(share.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / 12, abs=0.003)
    assert float(d.max()) > 0.98  # the jump of length 1 is trained
    assert (call.d[20_000:] == 0).all()
    assert float(call.t[20_000:].mean()) == pytest.approx(0.5, abs=0.01)


def test_continuous_loss_is_the_sum_of_two_means() -> None:
    held = Case(ShortcutContinuous(bootstrap_share=0.25))
    loss = held.loss(held.nets(nonlinear_test_net, nonlinear_test_net), held.batch(64, 0), 0)
    total = loss.logs["loss_flow"] + loss.logs["loss_bootstrap"]
    torch.testing.assert_close(loss.per_sample.detach().mean(), total)
    torch.testing.assert_close(
        loss.per_sample[:16].detach().mean() / 4, loss.logs["loss_bootstrap"]
    )


def test_continuous_halves_of_the_ideal_are_its_whole() -> None:
    held = Case(ShortcutContinuous(bootstrap_share=0.5))
    loss = held.loss(held.nets(), held.batch(500, 0), 0)
    assert float(loss.per_sample[:250].max()) < 1e-24


def test_continuous_samples_as_flow_where_told() -> None:
    held = Case(ShortcutContinuous(as_flow=True))
    record = CallRecorder(held.test_net)
    sampled = held.sample(record, held.noise(20, 0), [1.0, 0.7, 0.35, 0.0])
    assert all(c.d is not None and (c.d == 0).all() for c in record.calls)
    x = held.noise(20, 0)
    for t, u in ((1.0, 0.7), (0.7, 0.35), (0.35, 0.0)):
        x = x + (u - t) * held.flow.velocity(x, torch.full((20,), t, dtype=x.dtype))
    assert rel_error(sampled, x) < 1e-12


def test_small_batches_come_to_every_length_in_turn() -> None:
    """One bootstrap row a step: the turn goes on from step to step."""
    held, seen = Case(Shortcut(finest=8)), []
    for step in range(6):
        loss = held.objective.loss(held.nets(), held.batch(4, 0), Progress(step, 6), Generator())
        assert loss.d is not None
        seen.append(float(loss.d[0]))
    assert seen == [1, 1 / 2, 1 / 4] * 2


def test_one_row_can_be_trained_on() -> None:
    held = Case(ShortcutContinuous())
    assert held.loss(held.nets(), held.batch(1, 0), 0).per_sample.isfinite().all()
