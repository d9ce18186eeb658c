"""IMM against its equations; groups of rows that belong together."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny, trainer
from scipy.stats import norm
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import Rows
from fewstep.objectives import IMM, Batch, Nets
from fewstep.objectives.conformance.case import CallRecorder, Case, g, nonlinear_test_net
from fewstep.objectives.conformance.training import _gradient
from fewstep.objectives.core.batch_math import in_groups
from fewstep.objectives.imm import mmd

ROWS = 64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=g(seed), dtype=torch.float64)


def by_hand(y: Tensor, z: Tensor, c: float) -> float:
    """MMD^2 of two groups (M, D), pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-max(float((a - b).norm()), 1e-8) / (len(a) * c))

    pairs = [(i, j) for i in range(len(y)) for j in range(len(y))]
    return sum(k(y[i], y[j]) + k(z[i], z[j]) - 2 * k(y[i], z[j]) for i, j in pairs) / len(pairs)


def similarity(shift: float, spread: float, c: float) -> float:
    """E exp(-|Z| / c), Z ~ N(shift, spread^2)."""
    m, s = shift / spread, spread / c
    parts = math.exp(-shift / c) * norm.cdf(m - s) + math.exp(shift / c) * norm.cdf(-m - s)
    return math.exp(s**2 / 2) * float(parts)


def test_the_discrepancy_pair_by_pair() -> None:
    y, z, c = drawn(3, 4, 5), drawn(3, 4, 5, seed=1), torch.tensor([0.1, 0.5, 2.0]).double()
    expected = [by_hand(y[i], z[i], float(c[i])) for i in range(3)]
    torch.testing.assert_close(mmd(y, z, c), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(mmd(z, y, c), mmd(y, z, c))
    torch.testing.assert_close(mmd(y, y.flip(1), c), torch.zeros(3).double(), atol=1e-7, rtol=0)
    assert (mmd(y, z, c) > 0).all()


def test_the_discrepancy_of_two_gaussians() -> None:
    """In one dimension its mean is known; pairs of a row with itself have similarity 1."""
    G, M, c, shift, a, b = 200_000, 4, 0.8, 0.6, 0.7, 1.1
    y, z = a * drawn(G, M, 1), shift + b * drawn(G, M, 1, seed=1)
    found = mmd(y, z, torch.full((G,), c, dtype=torch.float64))
    own = similarity(0, a * 2**0.5, c) + similarity(0, b * 2**0.5, c)
    expected = 2 / M + (1 - 1 / M) * own - 2 * similarity(shift, math.hypot(a, b), c)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / G**0.5)
    assert float(found.std()) / G**0.5 < 0.002


def test_samples_that_meet_have_gradients() -> None:
    y = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    mmd(y, torch.ones_like(y), torch.ones(1).double()).backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert (y.grad < 0).all()  # toward the others


@pytest.mark.parametrize("parameterisation", ["euler_fm", "simple_edm"])
def test_the_loss_by_its_equations(parameterisation: str) -> None:
    objective = IMM(parameterisation=parameterisation, a=2.0, b=3.0, k=6.0)
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    y = torch.arange(ROWS) % 3
    batch = case.batch(ROWS, 0, y=y)
    dropped = Batch(batch.x, y.masked_fill(y == 1, 9), y)
    average = CallRecorder(nonlinear_test_net)
    loss = case.loss(Nets(record, average), dropped, 0)
    shorter, longer = record.calls
    assert not average.calls
    assert (shorter.grad, longer.grad) == (False, True)
    assert shorter.y is y
    assert longer.y is dropped.y
    t, r = longer.t, shorter.t
    assert longer.d is not None
    assert shorter.d is not None
    s = t - longer.d
    torch.testing.assert_close(r - shorter.d, s)
    for each in (t, s, r):
        assert torch.equal(each, each[::4].repeat_interleave(4))
    assert len(t.unique()) == ROWS // 4
    eta = (t / (1 - t) - 0.994 / 0.006 / 2**6).clamp(min=0)
    torch.testing.assert_close(r, torch.maximum(s, torch.minimum(eta / (1 + eta), t - 1e-4)))
    assert 0 < int((r == s).sum()) < ROWS
    eps = (longer.x - (1 - t)[:, None] * batch.x) / t[:, None]
    torch.testing.assert_close(shorter.x, (1 - r)[:, None] * batch.x + r[:, None] * eps)

    def f(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        F, n = nonlinear_test_net(x, t, t - s), ((1 - t) ** 2 + t**2) ** 0.5
        if parameterisation == "euler_fm":
            return x - (t - s)[:, None] * F, t - s
        c_skip = ((1 - t) * (1 - s) + t * s) / n**2
        c_out = -((1 - s) * t - (1 - t) * s) / n
        return c_skip[:, None] * x + c_out[:, None] * F, c_out.abs()

    (jumped, c), (target, _) = f(longer.x, t), f(shorter.x, r)
    lambda_t = 2 * ((1 - t) / t).log()
    w = 0.5 * (3 - lambda_t).sigmoid() * 2 / (t * (1 - t)) * (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    expected = [
        float(w[i]) * by_hand(jumped[i : i + 4], target[i : i + 4], float(c[i]))
        for i in range(0, ROWS, 4)
    ]
    found = loss.per_sample[::4]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(loss.per_sample, found.repeat_interleave(4))


def test_times_are_uniform_up_to_the_end() -> None:
    case = Case(IMM(end=0.8))
    loss = case.loss(case.nets(), case.batch(40_000, 0), 0)
    t, d = loss.t[::4], loss.d
    assert d is not None
    share = (t - d[::4]) / t
    for u in (t / 0.8, share):
        assert float(u.min()) >= 0
        assert float(u.max()) <= 1
        assert float(u.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(u.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert float(torch.stack([t, share]).corrcoef()[0, 1].abs()) < 0.05


def test_r_is_never_nearer_than_the_gap_but_to_s() -> None:
    t, s, expected = torch.tensor(
        [[0.5, 0.9, 0.5], [0.2, 0.1, 0.49995], [0.4999, 0.8999, 0.49995]], dtype=torch.float64
    )
    objective = IMM(k=20.0)
    torch.testing.assert_close(objective.closer(t, s), expected, rtol=0, atol=1e-12)


def test_at_the_exact_map_the_distributions_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the pull of a row's own target is left, M of M^2 pairs, and it vanishes with t - r."""
    monkeypatch.setattr("fewstep.objectives.imm.FINE", 0)
    slopes = {}
    for M, k in ((1, 8.0), (16, 8.0), (16, 16.0)):
        case = Case(IMM(group_size=M, k=k, a=1.0))
        found = [_gradient(case, ["x"], 0.0, case.batch(4096, i), i) for i in range(16)]
        slopes[M, k] = float(torch.stack(found).mean()), float(torch.stack(found).std()) / 4
    assert slopes[1, 8.0][0] < -0.08
    assert -0.02 < slopes[16, 8.0][0] < -0.004
    assert abs(slopes[16, 16.0][0]) < 4 * slopes[16, 16.0][1] < 0.003


def test_groups() -> None:
    x, case = drawn(6, 2), Case(IMM())
    assert torch.equal(in_groups(x, 3)[1, 0], x[3])
    with pytest.raises(UserError, match=r"a batch of 6 rows cannot be split into groups of 4"):
        in_groups(x, 4)
    with pytest.raises(UserError, match=r"cannot be split into groups of 4"):
        case.loss(case.nets(), case.batch(10, 0), 0)
    with pytest.raises(UserError, match=r"objective\.group_size must be at least 1, got 0"):
        IMM(group_size=0)


def test_a_batch_that_is_no_multiple_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        tiny(tmp_path, "objective=imm", "training.batch_size=18")
    assert str(refused.value) == (
        "training.batch_size must be a multiple of 4, the rows that IMM groups "
        "(objective.group_size), got 18"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [8, 4000])
def test_the_validation_loss_takes_whole_groups(batch: int, tmp_path: Path) -> None:
    size = ("objective.group_size=8", f"training.batch_size={batch}", "backbone.width=8")
    made = trainer(tiny(tmp_path, "objective=imm", *size))
    held_out, take, asked = len(made.dataset.test), made._batch, []

    def watched(rows: Rows, purpose: str, index: int) -> Batch:
        asked.append(len(rows.x))
        return take(rows, purpose, index)

    made._batch = watched  # type: ignore[method-assign]
    assert math.isfinite(made.validation_loss())
    assert held_out % 8
    assert asked == [min(batch, held_out // 8 * 8)] * 4
