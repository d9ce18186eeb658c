"""DMD2 and SiD on Gaussian data, where scores, divergences and companions are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from fewstep.errors import UserError
from fewstep.objectives import DMD2, Batch, GaussianFlow, Loss, Net, Nets, Objective, Progress, SiD
from fewstep.objectives.conformance import run_checks
from fewstep.objectives.conformance.case import CallRecorder, Case, g
from fewstep.objectives.core.distribution_matching import DistributionMatching, karras_times

MEAN, STD = 0.4, 0.7  # of the data
ROWS = 64
H = 1e-6
BOTH = [DMD2(), SiD(), SiD(alpha=1.0), SiD(alpha=0.5, input_time=1.0)]
ENDS = Progress(9, 10)


def column(t: Tensor) -> Tensor:
    return t[:, None]


def variance(t: Tensor, std: Tensor | float) -> Tensor:
    return (1 - t) ** 2 * std**2 + t**2


def gaussian(mean: Tensor | float, std: Tensor | float) -> Net:
    """The velocity of data from N(mean, std^2 I)."""

    def velocity(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        t = column(t)
        centred = (x - (1 - t) * mean) / variance(t, std)
        return t * centred - mean - (1 - t) * std**2 * centred  # E[eps | x_t] - E[x | x_t]

    return velocity


def score(x_t: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """The gradient of log density of x_t."""
    return -(x_t - (1 - column(t)) * mean) / variance(column(t), std)


def generator(objective: DistributionMatching, mean: Tensor, std: Tensor) -> Net:
    """A network whose samples are mean + std z."""
    tau = objective.input_time

    def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert torch.equal(t, torch.full_like(t, tau))
        return x / tau - (mean + std * x / tau) / tau

    return F


def made(objective: DistributionMatching, x: Tensor) -> Net:
    """A network whose samples are ``x``."""
    tau = objective.input_time
    return lambda x_in, t, d=None, y=None: (x_in - x) / tau


def rows(n: int = ROWS, dimension: int = 2) -> Batch:
    return Batch(torch.zeros(n, dimension, dtype=torch.float64))


def taken(
    objective: Objective, online: Net, companion: Net, batch: Batch, seed: int = 0
) -> tuple[Loss, CallRecorder]:
    """The network's loss, and what the teacher was asked."""
    teacher = CallRecorder(gaussian(MEAN, STD))
    nets = Nets(online, teacher=teacher, companion=companion)
    return objective.loss(nets, batch, ENDS, g(seed)), teacher


def gradients(objective: DistributionMatching, mean: float, std: float) -> tuple[float, float]:
    """Of the expected loss in mean and spread of the samples, with the best companion."""
    m, k = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, std))
    loss, _ = taken(objective, generator(objective, m, k), gaussian(mean, std), rows(50_000, 1))
    found = torch.autograd.grad(loss.per_sample.mean(), (m, k))
    return float(found[0]), float(found[1])


# -------------------------------------------------------------------------------------- Gaussians


@pytest.mark.parametrize("objective", BOTH, ids=repr)
def test_nothing_moves_where_samples_are_the_data(objective: DistributionMatching) -> None:
    assert gradients(objective, MEAN, STD) == pytest.approx((0, 0), abs=1e-12)


def kl(mean: float, std: float) -> float:
    """Of the samples from the data."""
    ratio = std / STD
    return (ratio**2 - 1) / 2 - torch.tensor(ratio).log().item() + (mean - MEAN) ** 2 / 2 / STD**2


def fisher(mean: float, std: float) -> float:
    """The mean square of the difference of the scores."""
    return (std / STD**2 - 1 / std) ** 2 + ((mean - MEAN) / STD**2) ** 2


@pytest.mark.parametrize("objective", BOTH, ids=repr)
@pytest.mark.parametrize("std", [0.2, STD, 1.2])
@pytest.mark.parametrize("mean", [-0.6, MEAN, 1.0])
def test_a_step_lowers_both_divergences(
    objective: DistributionMatching, mean: float, std: float
) -> None:
    if (mean, std) == (MEAN, STD):
        return
    slopes = gradients(objective, mean, std)
    step = 0.01 / max(map(abs, slopes))
    after = mean - step * slopes[0], std - step * slopes[1]
    assert kl(*after) < kl(mean, std)
    assert fisher(*after) < fisher(mean, std)


@pytest.mark.parametrize("objective", BOTH, ids=repr)
def test_the_companion_is_smallest_at_the_velocity_of_the_samples(
    objective: DistributionMatching,
) -> None:
    """Wherever the data are: its gradients in mean and spread vanish there, and not beside."""
    mean, std, batch = -0.5, 1.1, rows(200_000, 1)
    online = generator(objective, torch.tensor(mean), torch.tensor(std))
    slopes = {}
    for off in (-0.1, 0.0, 0.1):
        m, k = (torch.tensor(v + off, dtype=torch.float64, requires_grad=True) for v in (mean, std))
        nets = Nets(online, teacher=gaussian(MEAN, STD), companion=gaussian(m, k))
        loss = objective.companion_loss(nets, batch, ENDS, g(1)).per_sample.mean()
        slopes[off] = torch.stack(torch.autograd.grad(loss, (m, k)))
    assert bool((slopes[-0.1] < 0).all())
    assert bool((slopes[0.1] > 0).all())
    assert bool((slopes[0.0].abs() < 0.15 * slopes[0.1]).all())


@pytest.mark.parametrize("objective", [DMD2(companion_updates=2), SiD()], ids=repr)
def test_the_two_learn_the_data_together(objective: DistributionMatching) -> None:
    """As the trainer has them take turns; both begin at another Gaussian."""
    own = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
    its = own.detach().clone().requires_grad_()
    slow, fast = torch.optim.Adam([own], 0.02), torch.optim.Adam([its], 0.03)
    losses = [objective.companion_loss] * objective.companion_updates + [objective.loss]
    turns, draws = [fast] * objective.companion_updates + [slow], Generator().manual_seed(0)
    path = []
    for _ in range(120):
        for loss, optimiser in zip(losses, turns, strict=True):
            online, companion = generator(objective, *own), gaussian(*its)
            nets = Nets(online, teacher=gaussian(MEAN, STD), companion=companion)
            slow.zero_grad()
            fast.zero_grad()
            loss(nets, rows(256, 1), ENDS, draws).per_sample.mean().backward()
            optimiser.step()
        path.append(torch.cat([own, its]).detach())
    late = torch.stack(path[-40:]).mean(0)
    assert late.tolist() == pytest.approx([MEAN, STD] * 2, abs=0.1)


# ------------------------------------------------------------------------------------------- DMD2


def test_dmd2_moves_samples_along_the_difference_of_scores() -> None:
    """By t^2 / (1 - t) of it, over the teacher's error; gradients come through nothing else."""
    objective, batch = DMD2(), rows()
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=g(3)).requires_grad_()
    loss, teacher = taken(objective, made(objective, x), gaussian(-0.5, 1.3), batch)
    ((found, t),) = [(c.x, c.t) for c in teacher.calls]
    real = found - column(t) * gaussian(MEAN, STD)(found, t)
    off = score(found, t, -0.5, 1.3) - score(found, t, MEAN, STD)
    size = (x.detach() - real).abs().mean(1, keepdim=True)
    expected = column(t**2 / (1 - t)) * off / size
    torch.testing.assert_close(loss.per_sample, expected.square().mean(1) / 2)
    (moved,) = torch.autograd.grad(loss.per_sample.sum(), x)
    torch.testing.assert_close(moved, expected / 2)  # over D
    gap = (column(t**2 / (1 - t)) * off).square().mean().sqrt()
    torch.testing.assert_close(loss.logs["score_gap"], gap)


# -------------------------------------------------------------------------------------------- SiD


def test_sid_and_its_gradient_by_differences() -> None:
    objective = SiD(alpha=0.8)
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=g(3))
    real_v, fake_v = gaussian(MEAN, STD), gaussian(-0.5, 1.3)
    _, teacher = taken(objective, made(objective, x), fake_v, rows())
    ((x_t, t),) = [(c.x, c.t) for c in teacher.calls]
    eps = (x_t - (1 - column(t)) * x) / column(t)

    def by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator, (B,)."""
        x_t = (1 - column(t)) * x + column(t) * eps
        real, fake = (x_t - column(t) * v(x_t, t) for v in (real_v, fake_v))
        cross = ((real - fake) * (fake - x)).mean(1)
        return 0.2 * (real - fake).square().mean(1) + cross, (real - x).abs().mean(1)

    size = by_hand(x)[1]
    leaf = x.clone().requires_grad_()
    loss, _ = taken(objective, made(objective, leaf), fake_v, rows())
    torch.testing.assert_close(loss.per_sample, by_hand(x)[0] / size)
    (found,) = torch.autograd.grad(loss.per_sample.sum(), leaf)
    for i in range(2):
        shift = H * torch.eye(2, dtype=torch.float64)[i]
        slope = (by_hand(x + shift)[0] - by_hand(x - shift)[0]) / (2 * H * size)
        torch.testing.assert_close(found[:, i], slope, rtol=1e-5, atol=1e-7)


def unnormalised(objective: SiD, std: float) -> tuple[float, float]:
    """The gradient in the samples' spread of SiD's numerator; half of the divergence's, exactly."""
    k = torch.tensor(std, dtype=torch.float64, requires_grad=True)
    zero, fake = torch.zeros((), dtype=torch.float64), gaussian(0.0, std)
    online = CallRecorder(generator(objective, zero, k))
    teacher = CallRecorder(gaussian(0.0, STD))
    nets = Nets(online, teacher=teacher, companion=fake)
    loss = objective.loss(nets, rows(400_000, 1), ENDS, g(0))
    x, t = std * online.calls[0].x / objective.input_time, column(loss.t)
    x_t = teacher.calls[0].x
    size = (x_t - t * gaussian(0.0, STD)(x_t, loss.t) - x).abs()[:, 0]
    (found,) = torch.autograd.grad(loss.per_sample, k, size)
    gap = (1 - t) * (STD**2 / variance(t, STD) - k**2 / variance(t, k))
    (exact,) = torch.autograd.grad((gap**2 * variance(t, k)).sum(), k)
    return float(found), float(exact) / 2


@pytest.mark.parametrize("std", [0.3, 1.2])
def test_at_one_half_sids_gradient_is_half_that_of_the_divergence(std: float) -> None:
    """Of |f_real - f_fake|^2, the companion's own change with the samples included."""
    found, exact = unnormalised(SiD(alpha=0.5), std)
    assert found == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("alpha", "ratio", "drifts"), [(1.2, 2.3, False), (1.2, 2.7, True), (1.0, 4.0, False)]
)
def test_wide_samples_drift_away_beyond_alpha_1(alpha: float, ratio: float, drifts: bool) -> None:
    """Where t is small: beyond sqrt(alpha / (alpha - 1)) of the data's width."""
    slope, exact = unnormalised(SiD(alpha=alpha, high=0.2), ratio * STD)
    assert exact > 0
    assert (slope < 0) == drifts


# --------------------------------------------------------------------------------- what they share


def levels(t: Tensor) -> Tensor:
    return (t / (1 - t)).log()


def test_noise_levels() -> None:
    many = torch.zeros(100_000, 1, dtype=torch.float64)
    sigma = levels(karras_times(many, g(0), 0.2, 0.8)).exp() ** (1 / 7)
    ends = [(1 - u) * 0.002 ** (1 / 7) + u * 80 ** (1 / 7) for u in (0.2, 0.8)]
    assert [float(sigma.min()), float(sigma.max())] == pytest.approx(ends, abs=1e-3)
    assert float(sigma.mean()) == pytest.approx(sum(ends) / 2, abs=2e-3)

    for objective, low, high in ((DMD2(), 0.02, 0.98), (SiD(), 0.0, 0.8)):
        x = objective.noised(many, g(0))
        torch.testing.assert_close(x[1], karras_times(many, g(0), low, high))
    tau = levels(SiD().companion_times(many, g(0)))
    assert [float(tau.mean()), float(tau.std())] == pytest.approx([-1.2, 1.2], abs=0.02)
    assert torch.equal(DMD2().companion_times(many, g(0)), karras_times(many, g(0), 0, 1))


@pytest.mark.parametrize("objective", [DMD2(teacher_guidance=2.0), SiD(teacher_guidance=2.0)])
def test_the_teacher_may_be_guided(objective: DistributionMatching) -> None:
    y = torch.zeros(ROWS, dtype=torch.int64)

    def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return x * (1 if y is None else 3)

    batch = Batch(rows().x, y)
    online, fake = made(objective, torch.ones(ROWS, 2).double()), gaussian(0.0, 1.0)
    guided, plain = (
        o.loss(Nets(online, teacher=net, companion=fake), batch, ENDS, g(0)).per_sample
        for o, net in (
            (objective, teacher),
            (replace(objective, teacher_guidance=1.0), lambda x, t, d=None, y=None: 5 * x),
        )
    )
    torch.testing.assert_close(guided, plain)
    record = CallRecorder(teacher)
    objective.loss(Nets(online, teacher=record, companion=fake), batch, ENDS, g(0))
    assert len(record.calls) == 2
    assert objective.forward_passes() == 4


def test_samples_are_drawn_for_the_rows_labels() -> None:
    y = torch.arange(ROWS)
    for objective in (DMD2(), SiD()):
        online, companion = CallRecorder(gaussian(0.0, 1.0)), CallRecorder(gaussian(0.0, 1.0))
        nets = Nets(online, teacher=gaussian(0.0, 1.0), companion=companion)
        loss = objective.companion_loss(nets, Batch(rows().x, y), ENDS, g(0))
        assert torch.equal(companion.calls[0].t, loss.t)
        assert [torch.equal(c.y, y) for c in (*online.calls, *companion.calls)] == [True] * 2
        # noise alone, of the time that it is taken for
        assert float(online.calls[0].x.std()) == pytest.approx(objective.input_time, rel=0.1)
        noise = torch.randn(5, 2, dtype=torch.float64, generator=g(1))
        std = torch.tensor(0.3, dtype=torch.float64)
        drawn = objective.sample(generator(objective, std, std), noise)
        torch.testing.assert_close(drawn, 0.3 + 0.3 * noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"companion_updates": 0}, "companion_updates must be at least 1"),
        ({"input_time": 0.0}, "input_time must be greater than 0"),
        ({"low": 0.8}, r"low must be less than objective.high=0.8, got 0.8"),
        ({"fake_std": 0.0}, "fake_std must be greater than 0"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SiD(**settings)  # type: ignore[arg-type]


# ---------------------------------------------------------------- faults that the check must find


class OnData(DMD2):
    """Its companion learns from data."""

    def generate(self, net: Net, batch: Batch, g: Generator) -> Tensor:
        return batch.x if not torch.is_grad_enabled() else super().generate(net, batch, g)


class Uphill(DMD2):
    """Moves samples the wrong way."""

    def estimates(
        self, nets: Nets, x_t: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        real, fake = super().estimates(nets, x_t, t, y)
        return fake, real


class Trained(SiD):
    """The companion's loss trains the network too."""

    def companion_loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().companion_loss(nets, batch, progress, g)
        return replace(loss, per_sample=loss.per_sample + nets.online(batch.x, loss.t).sum(1))


@pytest.mark.parametrize(
    ("objective", "failing"),
    [(OnData(), "companion"), (Uphill(), "minimum at the optimum"), (Trained(), "companion")],
    ids=lambda v: type(v).__name__,
)
def test_the_check_finds(objective: Objective, failing: str) -> None:
    assert [f.name for f in run_checks(objective, [failing]) if f.passed is False] == [failing]


def test_several_steps_follow_the_flow_from_the_input_time() -> None:
    """With an exact flow for the network they are Euler's, and shrink nothing."""
    objective = SiD()
    flow = GaussianFlow(objective.path, 0.7)

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return flow.velocity(x, t)

    noise = Case(objective).noise(4000, 0)
    tau = torch.tensor(objective.input_time, dtype=torch.float64)
    kept = float(tau / flow.variance(tau[None]).sqrt())  # x of that time is noise alone
    fine = objective.sample(net, noise, times=512)
    assert float(fine.std()) == pytest.approx(0.7 * kept, rel=0.02)
    one = objective.sample(net, noise, times=1)
    jumped = objective.jump(net, noise, torch.ones(4000).double(), torch.zeros(4000).double(), None)
    torch.testing.assert_close(one, jumped)
