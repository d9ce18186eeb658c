"""Data sets: known facts of the real ones, refusals of damaged ones, closed forms of the toys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fewstep.errors import UserError
from fewstep.experiments.data import DATA, Dataset, Split, to_model, to_uint8
from fewstep.experiments.data.digits import Digits
from fewstep.experiments.data.toy import (
    Gaussian,
    GaussianMixture,
    Gaussians,
    HasMixture,
    coefficients,
)
from fewstep.objectives.core.paths import LinearPath, TrigPath

# ---------------------------------------------------------------- splits and the way to the model


def test_uint8_survives_the_way_to_the_model_and_back() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_model(x).dtype == torch.float32
    assert (to_model(x).min(), to_model(x).max()) == (-1, 1)
    assert torch.equal(to_uint8(to_model(x)), x)


def test_to_uint8_clips_and_rounds() -> None:
    level = 2 / 255
    x = torch.tensor([-7.0, -1 + 0.49 * level, -1 + 0.51 * level, 1 - 0.51 * level, 1.001])
    assert to_uint8(x.reshape(1, 1, 1, 5)).flatten().tolist() == [0, 0, 1, 254, 255]


def test_vectors_pass_through() -> None:
    x = torch.tensor([[3.0, -7.5]])
    assert to_model(x) is x
    assert to_uint8(x) is x


def test_non_finite_pixels_are_not_images() -> None:
    with pytest.raises(FloatingPointError):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))


def test_hash_tells_contents_shape_and_labels_apart() -> None:
    x = torch.arange(16, dtype=torch.uint8).reshape(2, 2, 2, 2)
    y = torch.tensor([0, 1])
    changed = x.clone()
    changed[1, 1, 1, 1] += 1
    splits = [Split(x), Split(x, y), Split(x, 1 - y), Split(changed), Split(x.reshape(2, 1, 4, 2))]
    assert len({split.sha256 for split in splits}) == len(splits)
    assert Split(x.clone(), y.clone()).sha256 == Split(x, y).sha256
    # memory layout is not content
    assert Split(x.to(memory_format=torch.channels_last)).sha256 == Split(x).sha256


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.zeros(2, 1, 4), None, "float32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), None, "float64"),
        (torch.zeros(2, 4, dtype=torch.float64), None, "float64"),
        (torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
        (torch.zeros(2, 4), torch.zeros(2), "int64"),
    ],
)
def test_split_refuses(x: torch.Tensor, y: torch.Tensor | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Split(x, y)


def test_class_names_are_as_many_as_classes() -> None:
    split = Split(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert Dataset("x", split, split, 2).class_names == ()
    assert Dataset("x", split, split, 2, ("cat", "dog")).class_names == ("cat", "dog")
    with pytest.raises(UserError, match="x: 1 class names for 2 classes"):
        Dataset("x", split, split, 2, ("cat",))


def test_dataset_refuses_labels_out_of_range_and_unlike_splits() -> None:
    good = Split(torch.zeros(2, 4), torch.tensor([0, 3]))
    with pytest.raises(UserError, match=r"0\.\.3, expected 0\.\.2"):
        Dataset("x", good, good, 3)
    with pytest.raises(UserError, match="test has no labels"):
        Dataset("x", good, Split(good.x), 4)
    with pytest.raises(UserError, match="test examples"):
        Dataset("x", good, Split(torch.zeros(2, 5), good.y), 4)


# ---------------------------------------------------------------- digits


def test_digits() -> None:
    data = DATA["digits"].load()
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (
        1200,
        597,
        (1, 8, 8),
        10,
    )
    assert data.is_image
    everything = torch.cat((data.train.x, data.test.x))
    assert everything.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    # scikit-learn's published mean of 4.8842 of 16; the split must neither lose nor repeat images
    assert everything.double().mean() / 255 == pytest.approx(4.884165 / 16, abs=2e-4)
    assert len(everything.flatten(1).unique(dim=0)) == 1797
    labels = torch.cat((data.train.y, data.test.y))
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_split_is_stratified_shuffled_and_fixed() -> None:
    data = Digits().load()
    due = data.train.y.bincount() + data.test.y.bincount()
    assert ((data.test.y.bincount() - due * 597 / 1797).abs() < 1).all()
    assert data.train.y[:200].bincount(minlength=10).max() < 40  # not sorted by class
    assert data.train.sha256 == Digits().load().train.sha256
    # the split's identity: a change of it changes every published number
    assert data.train.sha256.startswith("defb4e516e16")


def test_digits_labels_stay_with_their_images() -> None:
    data = Digits().load()
    x, y = data.train.x.flatten(1).float(), data.train.y
    nearest = torch.cdist(data.test.x.flatten(1).float(), x).argmin(1)
    assert (y[nearest] == data.test.y).float().mean() > 0.97


@pytest.mark.parametrize("test_images", [0, 1797])
def test_digits_refuses(test_images: int) -> None:
    with pytest.raises(UserError, match=f"at most 1796, got {test_images}"):
        Digits(test_images=test_images)


# ---------------------------------------------------------------- toys with closed forms

PATHS = [LinearPath(), TrigPath(sigma_d=0.5)]
RING = Gaussians(modes=5, radius=1.5, std=0.3).mixture()
UNEVEN = GaussianMixture(
    torch.tensor([[-1.0], [0.4], [2.0]]).double(), 0.35, torch.tensor([0.2, 0.5, 0.3]).double()
)


def probe(n: int = 6, D: int = 2) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def log_density(x: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    """log p(x_t) of the ring, (B,), by torch's own mixture."""
    means, width = a * RING.means, (a**2 * RING.std**2 + b**2) ** 0.5
    modes = Independent(Normal(means, torch.as_tensor(width).expand_as(means)), 1)
    return MixtureSameFamily(Categorical(RING.weights), modes).log_prob(x)


def score(x: torch.Tensor, a: object, b: object) -> torch.Tensor:
    _, noise = RING.posterior(x, a, b)  # type: ignore[arg-type]
    return -noise / b


def test_score_is_the_gradient_of_the_log_density() -> None:
    x = probe().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(x, 0.6, 0.5).sum(), x)
    # Tweedie: the score is minus the expected noise over b
    torch.testing.assert_close(score(x, 0.6, 0.5), gradient)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_satisfies_the_continuity_equation(path: LinearPath | TrigPath) -> None:
    """d/dt log p + div v + v . grad log p = 0, with d/dt by central differences."""
    at = coefficients(path)
    t, h = torch.tensor(0.4 * path.t_max, dtype=torch.float64), 1e-5
    x = probe().requires_grad_()
    v = RING.velocity(x, *at(t))
    divergence = sum(
        torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)
    )
    later, earlier = (log_density(x, *at(t + s)[:2]) for s in (h, -h))
    transport = (v * score(x, *at(t)[:2])).sum(1)
    residual = (later - earlier) / (2 * h) + divergence + transport
    assert residual.abs().max() < 1e-7
    assert transport.abs().max() > 0.1


def test_posterior_means_agree_with_monte_carlo() -> None:
    """E[x | x_t] by weighing draws of x with p(x_t | x) = N(a x, b^2)."""
    a, b, x_t = 0.6, 0.5, probe(4)
    x = RING.sample(200_000, seed=5)[0].double()
    weights = (-torch.cdist(x_t, a * x).square() / (2 * b**2)).softmax(1)
    data, eps = RING.posterior(x_t, a, b)
    torch.testing.assert_close(data, weights @ x, rtol=0, atol=0.02)
    noise = weights @ ((x_t.unsqueeze(1) - a * x) / b).transpose(0, 1).reshape(-1, 8)
    expected = torch.stack([noise[i, 2 * i : 2 * i + 2] for i in range(4)])
    torch.testing.assert_close(eps, expected, rtol=0, atol=0.02)


def test_velocity_takes_one_time_per_example() -> None:
    at, x, t = coefficients(LinearPath()), probe(), torch.linspace(0, 1, 6).double()
    each = [RING.velocity(x[i : i + 1], *at(t[i : i + 1])) for i in range(6)]
    torch.testing.assert_close(RING.velocity(x, *at(t)), torch.cat(each))
    # at pure noise x_t = eps the data is unknown: its posterior mean is its mean, here 0
    torch.testing.assert_close(each[-1][0], x[-1])


@pytest.mark.parametrize("path", PATHS)
def test_flow_map_of_one_gaussian_is_closed(path: LinearPath | TrigPath) -> None:
    mixture, at, x = Gaussian(std=0.5).mixture(), coefficients(path), probe()
    t, u = path.t_max, 0.1
    # the velocity is x v'/2v with v = a^2 std^2 + b^2, hence x_u = x_t sqrt(v_u / v_t)
    ends = [[float(c) for c in at(torch.tensor(s).double())[:2]] for s in (t, u)]
    v_t, v_u = (a**2 * 0.25 + b**2 for a, b in ends)
    closed = x * math.sqrt(v_u / v_t)
    torch.testing.assert_close(mixture.flow_map(x, t, u, at), closed, rtol=1e-8, atol=1e-9)
    if isinstance(path, TrigPath):  # noise as wide as the data: nothing moves
        torch.testing.assert_close(closed, x)
    else:
        torch.testing.assert_close(closed, x * math.sqrt(0.9**2 * 0.25 + 0.01))


@pytest.mark.parametrize("path", PATHS)
def test_flow_map_of_a_mixture_keeps_quantiles(path: LinearPath | TrigPath) -> None:
    """On the line trajectories cannot cross, so F_t(x_t) = F_u(x_u)."""
    at, x = coefficients(path), probe(8, D=1)
    t = torch.linspace(0.5, 1, 8).double() * path.t_max

    def quantile(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b, *_ = (c.unsqueeze(1) for c in at(t))
        z = (x - a * UNEVEN.means.T) / (a**2 * UNEVEN.std**2 + b**2).sqrt()
        return torch.special.ndtr(z) @ UNEVEN.weights

    x_u = UNEVEN.flow_map(x, t, 0.05, at)
    torch.testing.assert_close(
        quantile(x_u, torch.full((8,), 0.05).double()), quantile(x, t), rtol=0, atol=1e-8
    )
    assert (x_u - x).abs().max() > 0.3


@pytest.mark.parametrize("path", PATHS)
def test_flow_map_of_a_mode_is_that_of_a_mixture_of_one(path: LinearPath | TrigPath) -> None:
    at, x, y = coefficients(path), probe(), torch.tensor([0, 1, 2, 3, 4, 0])
    t = path.t_max * torch.linspace(0.4, 1, 6).double()
    u = path.t_max * torch.linspace(0, 0.3, 6).double()
    closed = RING.mode_flow_map(x, y, t, u, at)
    for i in range(6):
        alone = GaussianMixture(RING.means[y[i : i + 1]], RING.std, torch.ones(1).double())
        solved = alone.flow_map(x[i : i + 1], t[i : i + 1], u[i : i + 1], at)
        torch.testing.assert_close(closed[i : i + 1], solved, rtol=1e-8, atol=1e-9)
    assert (closed - x).abs().max() > 0.3


def test_gaussians_without_labels_are_the_same_points() -> None:
    with_labels, without = Gaussians().load(), Gaussians(labels=False).load()
    assert (without.num_classes, without.train.y, without.test.y) == (0, None, None)
    assert torch.equal(without.train.x, with_labels.train.x)
    assert torch.equal(without.test.x, with_labels.test.x)
    assert isinstance(Gaussians(), HasMixture)
    assert not isinstance(DATA["digits"], HasMixture)


def test_gaussians_are_drawn_from_their_mixture() -> None:
    data = Gaussians(modes=4, radius=2.0, std=0.25, samples=20_000).load()
    x, y = data.train.x, data.train.y
    assert y is not None
    assert (data.shape, data.num_classes, data.is_image) == ((2,), 4, False)
    assert x.dtype == torch.float32
    means = torch.stack([x[y == k].mean(0) for k in range(4)])
    expected = torch.tensor([[2.0, 0], [0, 2], [-2, 0], [0, -2]])
    torch.testing.assert_close(means, expected, rtol=0, atol=0.02)
    residual = x - expected[y]
    assert residual.std().item() == pytest.approx(0.25, rel=0.02)
    assert (y.bincount() / 20_000 - 0.25).abs().max() < 0.02
    same_size = Gaussians(samples=64, test_samples=64).load()
    assert not torch.equal(same_size.train.x, same_size.test.x)
    assert data.train.sha256 == Gaussians(4, 2.0, 0.25, 20_000).load().train.sha256


def test_gaussian_has_no_classes() -> None:
    data = Gaussian(std=2.0, dimensions=3).load()
    assert (data.shape, data.num_classes, data.train.y) == ((3,), 0, None)
    assert data.train.x.std().item() == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    "make", [lambda: Gaussians(modes=0), lambda: Gaussians(std=0.0), lambda: Gaussian(std=-1.0)]
)
def test_toys_refuse(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="must be"):
        make()


def test_names() -> None:
    assert {"digits", "mnist", "fashion_mnist", "gaussians", "gaussian"} <= set(DATA.names())
