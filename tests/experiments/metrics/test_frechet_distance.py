"""The Frechet distance against closed forms, SciPy's square root, and its invariances."""

from __future__ import annotations

import pickle
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.data import DATA
from fewstep.experiments.metrics import frechet_distance as frechet
from fewstep.experiments.metrics.frechet_distance import (
    FrechetWarning,
    GaussianStats,
    frechet_distance,
)

Array = NDArray[np.float64]


def gaussian(mu: Array | list[float], sigma: Array, n: int | None = 10**6) -> GaussianStats:
    return GaussianStats(n, np.asarray(mu, dtype=float), np.asarray(sigma, dtype=float), "e", "p")


def fit(x: object) -> GaussianStats:
    return GaussianStats.from_features(x, "e", "p")  # type: ignore[arg-type]


def rotation(d: int, seed: int = 0) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def psd(d: int, seed: int, rank: int | None = None) -> Array:
    A = np.random.default_rng(seed).standard_normal((d, rank or d + 3))
    return A @ A.T


# ---------------------------------------------------------------- closed forms


def test_one_dimension() -> None:
    # (3 - 1)^2 + (sqrt 9 - sqrt 4)^2
    a, b = gaussian([3.0], np.array([[9.0]])), gaussian([1.0], np.array([[4.0]]))
    assert frechet_distance(a, b) == pytest.approx(5.0, rel=1e-14)


def test_commuting_covariances_in_any_basis() -> None:
    a, b = np.array([1.0, 4.0, 0.25, 9.0]), np.array([16.0, 1.0, 0.25, 0.0])
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert expected == 19.0
    zero = np.zeros(4)
    for Q in (np.eye(4), rotation(4)):
        value = frechet_distance(gaussian(zero, (Q * a) @ Q.T), gaussian(zero, (Q * b) @ Q.T))
        assert value == pytest.approx(expected, rel=1e-12)


def test_a_shifted_mean_costs_its_square_exactly() -> None:
    S = psd(5, 1)
    shift = np.array([0.5, -1.0, 2.0, 0.0, 0.25])
    value = frechet_distance(gaussian(np.zeros(5), S), gaussian(shift, S))
    assert value == pytest.approx((shift**2).sum(), rel=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_matrix_square_root(seed: int) -> None:
    S, T = psd(12, seed), psd(12, seed + 100)
    mu = np.linspace(-1, 1, 12)
    root = scipy.linalg.sqrtm(S @ T).real
    expected = (mu**2).sum() + np.trace(S + T - 2 * root)
    value = frechet_distance(gaussian(np.zeros(12), S), gaussian(mu, T))
    assert value == pytest.approx(expected, rel=1e-10)


# ---------------------------------------------------------------- invariances and hard cases


@pytest.mark.parametrize(("n", "d"), [(500, 16), (40, 64), (2, 5)])
def test_distance_of_a_set_to_itself_is_zero(n: int, d: int) -> None:
    x = np.random.default_rng(n).standard_normal((n, d)) * np.logspace(0, -6, d) + 1000
    stats = fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrechetWarning)
        assert frechet_distance(stats, stats) <= 1e-12 * np.trace(stats.sigma)


def test_ill_conditioned() -> None:
    """Condition 1e12 with another scale: d^2 = sum (2 - 1)^2 lambda, kept to the last digits."""
    values, Q = np.logspace(0, -12, 48), rotation(48)
    S = (Q * values) @ Q.T
    zero = np.zeros(48)
    value = frechet_distance(gaussian(zero, S), gaussian(zero, 4 * S))
    assert value == pytest.approx(values.sum(), rel=1e-12)
    reverse = frechet_distance(gaussian(zero, S), gaussian(zero, (Q * values[::-1]) @ Q.T))
    exact = ((np.sqrt(values) - np.sqrt(values[::-1])) ** 2).sum()
    assert reverse == pytest.approx(exact, rel=1e-9)


def test_rank_deficient() -> None:
    """Disjoint supports share nothing: d^2 = tr S + tr T."""
    Q = rotation(6)
    S, T = Q[:, :2] @ Q[:, :2].T, 3 * Q[:, 2:5] @ Q[:, 2:5].T
    value = frechet_distance(gaussian(np.zeros(6), S), gaussian(np.zeros(6), T))
    assert value == pytest.approx(2 + 9, rel=1e-7)  # a null space is known to 1e-8 from S alone


def test_fewer_samples_than_dimensions() -> None:
    """The nuclear norm of the centred features themselves tells what the last trace must be."""
    g = np.random.default_rng(0)
    x, y = g.standard_normal((10, 40)), 2 * g.standard_normal((15, 40)) + 1
    with pytest.warns(FrechetWarning, match=r"1[05] samples in 40"):
        value = frechet_distance(fit(x), fit(y))
    C, D = x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(C @ D.T, compute_uv=False).sum() / np.sqrt(9 * 14)
    traces = (C**2).sum() / 9 + (D**2).sum() / 14
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * nuclear
    assert value == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0.01, 100))
def test_symmetry_rotation_and_scale(d: int, seed: int, scale: float) -> None:
    g = np.random.default_rng(seed)
    mu, nu = g.standard_normal((2, d))
    S, T = psd(d, seed), psd(d, seed + 1)
    value = frechet_distance(gaussian(mu, S), gaussian(nu, T))
    assert frechet_distance(gaussian(nu, T), gaussian(mu, S)) == pytest.approx(value, rel=1e-9)
    M = scale * rotation(d, seed)  # d is a distance: it scales like the features, d^2 like squares
    moved = frechet_distance(gaussian(M @ mu, M @ S @ M.T), gaussian(M @ nu, M @ T @ M.T))
    assert moved == pytest.approx(scale**2 * value, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_triangle_inequality(d: int, seed: int) -> None:
    g = np.random.default_rng(seed)
    a, b, c = (gaussian(g.standard_normal(d), psd(d, seed + i)) for i in range(3))
    ab, bc, ac = (np.sqrt(frechet_distance(*p)) for p in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc + 1e-6


@pytest.mark.parametrize("large", [1, 10**6])  # Cholesky's factor, and the eigenvectors'
@pytest.mark.parametrize("seed", range(3))
def test_both_factors_give_the_square_root_of_scipy(
    seed: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "LARGE", large)
    S, T = psd(60, seed), psd(60, seed + 7)
    root = scipy.linalg.sqrtm(S @ T).real
    expected = np.trace(S + T - 2 * root)
    value = frechet_distance(gaussian(np.zeros(60), S), gaussian(np.zeros(60), T))
    assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("large", [1, 10**6])
def test_both_factors_bear_what_is_singular_or_nearly(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "LARGE", large)
    test_commuting_covariances_in_any_basis()
    test_ill_conditioned()
    test_rank_deficient()
    Q = rotation(40)
    flat = (Q * np.repeat([1.0, 0.0], 20)) @ Q.T  # rank 20 of 40, zero but for rounding
    low = frechet_distance(gaussian(np.zeros(40), flat), gaussian(np.zeros(40), np.eye(40)))
    assert low == pytest.approx(20, rel=1e-7)


def test_at_the_size_of_inception_features() -> None:
    """N(m, S) to N(0, c^2 S): |m|^2 + (1 - c)^2 tr S, whatever S."""
    d = 600
    S = psd(d, 0)
    mu = np.full(d, 0.1)
    value = frechet_distance(gaussian(mu, S), gaussian(np.zeros(d), 9 * S))
    assert value == pytest.approx(0.01 * d + 4 * np.trace(S), rel=1e-11)


# ---------------------------------------------------------------- statistics


def test_statistics_are_numpys() -> None:
    x = np.random.default_rng(0).standard_normal((50, 4)) + 10
    stats = fit(x)
    np.testing.assert_allclose(stats.mu, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(stats.sigma, np.cov(x, rowvar=False), rtol=1e-12)
    assert (stats.n, stats.dimension) == (50, 4)


def test_float32_features_are_summed_in_float64() -> None:
    """A far mean and a small spread: float32 sums would lose the covariance."""
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) + 3000
    assert x.dtype == torch.float32
    stats = fit(x)
    np.testing.assert_allclose(stats.sigma, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)
    assert frechet_distance(stats, fit(x.double())) < 1e-12
    np.testing.assert_array_equal(fit(x.double() / 3).sigma, fit(x.double().numpy() / 3).sigma)
    assert fit(x.bfloat16()).sigma.dtype == np.float64


def test_a_refused_set() -> None:
    x = np.zeros((4, 2))
    with pytest.raises(UserError, match="not finite in 2 of 4"):
        fit(np.array([[0, np.nan], [0, 0], [np.inf, 1], [1, 1]]))
    with pytest.raises(UserError, match=r"shape \(4,\)"):
        fit(x[:, 0])
    with pytest.raises(UserError, match=r"shape \(0, 2\)"):
        fit(x[:0])
    with pytest.raises(UserError, match="at least 2 samples on each side, got 1"):
        frechet_distance(fit(x[:1]), fit(x))
    with pytest.raises(UserError, match="do not fit"):
        gaussian([0.0, 0.0], np.eye(3))


@pytest.mark.parametrize(
    ("extractor", "preprocess", "d", "says"),
    [
        ("inception", "uint8", 2, "extractor: 'cnn' and 'inception'"),
        ("cnn", "float", 2, "preprocess: 'uint8' and 'float'"),
        ("cnn", "uint8", 3, "dimension: 2 and 3"),
    ],
)
def test_unlike_statistics_are_never_compared(
    extractor: str, preprocess: str, d: int, says: str
) -> None:
    a = GaussianStats(9, np.zeros(2), np.eye(2), "cnn", "uint8")
    b = GaussianStats(9, np.zeros(d), np.eye(d), extractor, preprocess)
    with pytest.raises(UserError, match=says):
        frechet_distance(a, b)


def test_warns_up_to_as_many_samples_as_dimensions() -> None:
    enough = gaussian(np.zeros(3), np.eye(3), n=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(enough, enough)
    with pytest.warns(FrechetWarning, match="3 samples in 3"):
        frechet_distance(enough, gaussian(np.zeros(3), np.eye(3), n=3))


# ---------------------------------------------------------------- files


def test_npz_round_trip(tmp_path: Path) -> None:
    stats = GaussianStats(77, np.array([1.0, 2]), psd(2, 0), "cnn@abc", "clip-round-uint8")
    stats.write(tmp_path / "stats.npz")
    read = GaussianStats.read(tmp_path / "stats.npz")
    assert (read.n, read.extractor, read.preprocess) == (77, "cnn@abc", "clip-round-uint8")
    np.testing.assert_array_equal(read.mu, stats.mu)
    np.testing.assert_array_equal(read.sigma, stats.sigma)
    with pytest.raises(UserError, match="of extractor 'cnn@abc', expected 'inception'"):
        GaussianStats.read(tmp_path / "stats.npz", extractor="inception")


def test_foreign_npz(tmp_path: Path) -> None:
    path = tmp_path / "fid.npz"
    np.savez(path, mu=np.zeros(2, np.float32), sigma=np.eye(2, dtype=np.float32))
    with pytest.raises(UserError, match="does not name its extractor"):
        GaussianStats.read(path)
    read = GaussianStats.read(path, "inception", "uint8")
    assert (read.n, read.mu.dtype, read.extractor) == (None, np.float64, "inception")
    other = GaussianStats(5, np.ones(2), np.eye(2), "inception", "uint8")
    assert frechet_distance(read, other) == pytest.approx(2.0)


def damaged(i: int, j: int, value: float) -> Array:
    """A covariance with one entry changed."""
    sigma = psd(3, 0)
    sigma[i, j] = value
    return sigma


@pytest.mark.parametrize(
    ("mu", "sigma", "says"),
    [
        (np.array([0.0, np.nan, 0.0]), psd(3, 0), "statistics of e features are not finite"),
        (np.zeros(3), damaged(1, 1, np.inf), "statistics of e features are not finite"),
        (np.zeros(3), psd(2, 0), r"covariance of shape \(2, 2\) do not fit"),
        (np.zeros(3), psd(3, 0)[0], r"covariance of shape \(3,\) do not fit"),
        (np.zeros(3), damaged(0, 0, -5.0), r"eigenvalues are -\d.* to \d.*, expected none below"),
        (np.zeros(3), damaged(2, 0, 100.0), r"sigma\[0,2\] is .*, sigma\[2,0\] is 100"),
        (np.array(["a", "b", "c"]), psd(3, 0), "could not convert"),
    ],
)
def test_statistics_that_cannot_be_are_refused_by_the_files_name(
    tmp_path: Path, mu: Array, sigma: Array, says: str
) -> None:
    path = tmp_path / "fid.npz"
    np.savez(path, mu=mu, sigma=sigma)
    with pytest.raises(UserError, match=rf"fid\.npz: .*{says}") as caught:
        GaussianStats.read(path, "e", "p")
    assert "\n" not in str(caught.value)


def sums_in_float32(x: Array) -> Array:
    """E[xx'] - mm', the covariance that rounding leaves most below zero."""
    x = x.astype(np.float32)
    total = sum((part.T @ part for part in np.array_split(x, 4)), np.float32(0))
    mean = x.mean(axis=0)
    return np.asarray(total / len(x) - np.outer(mean, mean))


@pytest.mark.parametrize(
    "covariance",
    [
        lambda x: np.cov(x, rowvar=False),
        lambda x: np.cov(x, rowvar=False).astype(np.float32),
        sums_in_float32,
        lambda x: sums_in_float32(x) * (1 + 1e-6 * np.tri(x.shape[1])),  # and not symmetric
        lambda x: 0 * np.cov(x, rowvar=False),
    ],
)
def test_what_rounding_does_to_a_covariance_is_no_damage(tmp_path: Path, covariance) -> None:
    """Of fewer samples than dimensions: most eigenvalues are 0, and may be a little below."""
    g = np.random.default_rng(0)
    sigma = covariance(0.4 + 0.1 * g.standard_normal((40, 200)))
    np.savez(tmp_path / "fid.npz", mu=np.zeros(200), sigma=sigma)
    read = GaussianStats.read(tmp_path / "fid.npz", "e", "p")
    np.testing.assert_array_equal(read.sigma, sigma)


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", b"PK\x03\x04torn", pickle.dumps({"mu": [0.0]})]
)
def test_what_is_no_npz_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npz is not an npz") as caught:
        GaussianStats.read(path)
    assert "pickle" not in str(caught.value)  # which numpy would have us do
    with pytest.raises(UserError, match="no file "):
        GaussianStats.read(tmp_path / "absent.npz")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))  # a bare array
    with pytest.raises(UserError, match=r"bad\.npz is not an npz"):
        GaussianStats.read(path)
    np.savez(path, arr_0=np.zeros(3))
    with pytest.raises(UserError, match=r"lacks \['mu', 'sigma'\].*arr_0"):
        GaussianStats.read(path)


# ---------------------------------------------------------------- on images


def test_more_noise_is_farther_on_digits() -> None:
    data = DATA["digits"].load()
    real = data.test.x.flatten(1).numpy().astype(float)
    reference = fit(data.train.x.flatten(1))
    g = np.random.default_rng(0)
    noise = g.standard_normal(real.shape)
    distances = [
        frechet_distance(reference, fit((real + level * noise).clip(0, 255).round()))
        for level in (0, 8, 16, 32, 64, 128)
    ]
    assert all(b > 1.05 * a for a, b in pairwise(distances)), distances
    assert data.test.y is not None
    dropped = frechet_distance(reference, fit(real[(data.test.y != 1).numpy()]))
    assert dropped > 1.05 * distances[0]
