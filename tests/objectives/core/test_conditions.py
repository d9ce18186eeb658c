"""Condition vectors: data x | y ~ N(A y, s^2 I), of which everything is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from fewstep.errors import UserError
from fewstep.objectives import (
    FACM,
    IMM,
    LSD,
    PSD,
    SCM,
    TVM,
    Batch,
    Consistency,
    DecoupledMeanFlow,
    FlowMatching,
    GaussianFlow,
    Guided,
    ImprovedMeanFlow,
    LiveReflow,
    MeanFlow,
    Nets,
    Objective,
    Progress,
    Shortcut,
    ShortcutContinuous,
    SoFlow,
    drop_conditions,
)
from fewstep.objectives.conformance.case import CallRecorder
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.label_dropout import kept_rows

S, ROWS = 0.4, 20_000
A = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 0.8, 0.6]], dtype=torch.float64)  # y (B, 3) -> x (B, 2)
END = Progress(999_999, 1_000_000)


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def draw(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (rows, 2) and y (rows, 3)."""
    g = generator(seed)
    y = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    return y @ A.T + S * torch.randn(rows, 2, generator=g, dtype=torch.float64), y


def mean(y: Tensor | None, like: Tensor) -> Tensor:
    """E[x | y]; 0 where there is no condition, for the sake of a network that knows none."""
    return torch.zeros_like(like) if y is None else (y.nan_to_num(0.0) @ A.T)


def optimum(objective: Objective) -> CallRecorder:
    """The network its loss is smallest at given y: the Gaussian one's, about the mean of y."""
    path = objective.path
    centred = objective.gaussian_optimum(GaussianFlow(path, S), END)
    assert centred is not None

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        m = mean(y, x)
        if isinstance(objective, SCM):  # f = cos x - sin sigma_d F, and x was divided by sigma_d
            a, sd = expand(t.cos(), x), objective.sigma_d
            F = centred(x - a * m / sd, t)
            return F + (a * a - 1) * m / (sd * expand(t.sin().clamp(min=1e-12), x))
        return centred(x - expand(path.alpha(t), x) * m, t, d) - m  # the velocity of (1 - t) m

    return CallRecorder(net)


OBJECTIVES = [
    FlowMatching(), Consistency(), Shortcut(), ShortcutContinuous(), MeanFlow(),
    ImprovedMeanFlow(), SCM(), LiveReflow(), LSD(weight="none"), PSD(weight="none"),
    SoFlow(), TVM(), FACM(cosine=0.0), DecoupledMeanFlow(), IMM(k=16.0),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.title)
def test_the_loss_is_smallest_at_the_conditional_optimum(objective: Objective) -> None:
    """Its gradient along A y, which no network without y could have, is 0 there, and not beside."""
    x, y = draw(ROWS)
    best, slopes = optimum(objective), []
    for start in (-0.1, 0.0, 0.1):
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)

        def net(
            x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None,
            theta: Tensor = theta,
        ) -> Tensor:  # fmt: skip
            return best(x, t, d, y) + theta * mean(y, x)

        nets = Nets(net, best, auxiliary=objective.auxiliary_module())
        loss = objective.loss(nets, Batch(x, y), END, generator(1)).per_sample
        (slope,) = torch.autograd.grad(loss.mean(), theta)
        slopes.append(float(slope))
    below, at, above = slopes
    assert below < 0 < above
    assert abs(at) < 0.1 * min(-below, above)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.title)
def test_samples_follow_their_rows_condition(objective: Objective) -> None:
    """One step where that is exact, many where it is an ODE: x = A y + S noise, row by row."""
    _, y = draw(64)
    noise = torch.randn(64, 2, generator=generator(2), dtype=torch.float64)
    steps = 400 if objective.jump_range == "ode" else 1
    found = objective.sample(optimum(objective), noise, y, steps, generator(3))
    if isinstance(objective, LiveReflow):  # straight lines end where its own 8 Euler steps do
        assert (found - y @ A.T).abs().max() < 2
    else:
        torch.testing.assert_close(found, y @ A.T + S * noise, rtol=0, atol=0.02)


def test_guidance_is_exact_at_the_scales_0_and_1() -> None:
    """w = 1 is the conditional network and w = 0 the one without; w = 3 is linear beyond."""
    x, y = draw(32)
    t, net = torch.rand(32, dtype=torch.float64), optimum(FlowMatching())
    conditional, null = net(x, t, None, y), net(x, t, None, None)
    assert torch.equal(Guided(net, 1.0)(x, t, None, y), conditional)
    torch.testing.assert_close(Guided(net, 0.0)(x, t, None, y), null)
    torch.testing.assert_close(Guided(net, 3.0)(x, t, None, y), 3 * conditional - 2 * null)


def test_rows_without_condition_are_not_guided() -> None:
    x, y = draw(32)
    dropped = drop_conditions(y, 0.5, 0, generator(0))
    t, net = torch.rand(32, dtype=torch.float64), optimum(FlowMatching())
    lost = ~kept_rows(dropped, y)
    guided, null = Guided(net, 3.0)(x, t, None, dropped), net(x, t, None, None)
    torch.testing.assert_close(guided[lost], null[lost])
    assert not torch.isclose(guided[~lost], null[~lost]).all(1).any()


def test_mean_flow_trains_guidance_into_kept_rows_only() -> None:
    x, y = draw(64)
    batch = Batch(x, drop_conditions(y, 0.5, 0, generator(0)), y)
    objective, t = MeanFlow(guidance=2.0), torch.full((64,), 0.5, dtype=torch.float64)
    v = torch.randn(64, 2, generator=generator(1), dtype=torch.float64)
    net = optimum(objective)
    target = objective.guided(net, x, t, v, batch)
    assert batch.y is not None
    kept = kept_rows(batch.y, y)
    assert 0 < int(kept.sum()) < 64
    assert torch.equal(target[~kept], v[~kept])
    null = net(x, t, torch.zeros_like(t), None)
    torch.testing.assert_close(target[kept], (2 * v - null)[kept])


@pytest.mark.parametrize("objective", [Shortcut(), ShortcutContinuous(), LiveReflow()],
                         ids=lambda o: o.title)  # fmt: skip
def test_rows_that_bootstrap_keep_their_vectors(objective: Objective) -> None:
    x, y = draw(64)
    batch, net = Batch(x, drop_conditions(y, 1.0, 0, generator(0)), y), optimum(objective)
    objective.loss(Nets(net), batch, END, generator(1))
    *targets, online = net.calls
    n = len(targets[0].x)
    assert all(c.y is not None and torch.equal(c.y, y[:n]) for c in targets)
    assert online.y is not None
    assert torch.equal(online.y[:n], y[:n])
    assert bool(online.y[n:].isnan().all())


@pytest.mark.parametrize("kind", ["classes", "vectors"])
def test_dropout_takes_the_share_asked_for_and_marks_whole_rows(kind: str) -> None:
    y = draw(ROWS)[1].float() if kind == "vectors" else torch.arange(ROWS) % 10
    dropped = drop_conditions(y, 0.3, 10, generator(0))
    kept = kept_rows(dropped, y)
    assert float((~kept).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped[kept], y[kept])
    lost = dropped[~kept]
    assert bool((lost == 10).all() if kind == "classes" else lost.isnan().all())
    assert torch.equal(kept, kept_rows(drop_conditions(y, 0.3, 10, generator(0)), y))
    same_in_part = torch.tensor([[1.0, 2.0]])
    assert not bool(kept_rows(same_in_part, torch.tensor([[1.0, 3.0]])))


@pytest.mark.parametrize(
    ("y", "share", "message"),
    [
        (torch.ones(4), 0.1, r"vectors \(B, k\).*got torch.float32 of shape \(4,\)"),
        (torch.ones(4, 2), -0.1, "at least 0 and at most 1, got -0.1"),
        (torch.ones(4, dtype=torch.long), 1.5, "at least 0 and at most 1, got 1.5"),
        (torch.ones(4, 2, dtype=torch.long), 0.1, r"got torch.int64 of shape \(4, 2\)"),
        (torch.ones(4, dtype=torch.bool), 0.1, r"got torch.bool of shape \(4,\)"),
    ],
)
def test_bad_arguments_of_label_dropout_are_refused(y: Tensor, share: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drop_conditions(y, share, 3, None)
    with pytest.raises(UserError, match="num_classes must be at least 1, got 0"):
        drop_conditions(torch.ones(4, dtype=torch.long), 0.1, 0, None)  # which is class 0
