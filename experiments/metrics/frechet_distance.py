"""The Frechet distance between Gaussian fits of two feature sets, in float64.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^1/2 S_2 S_1^1/2)^1/2

(Dowson & Landau 1982; as "FID" with Inception features: Heusel et al. 2017, arXiv:1706.08500,
eq. 6). Like FID, the value is d^2. The last trace is the nuclear norm of A'B for any factors
S_1 = AA', S_2 = BB', so no matrix square root is needed, and nothing is ever added to a diagonal.
"""

import contextlib
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.linalg
import torch
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import UserError

LARGE = 512  # dimensions; below, an eigendecomposition takes no time
# by how much a file's sigma may fail to be a covariance, over its Frobenius norm: a hundred times
# what E[xx'] - mm' summed in float32 does (1e-6 of it below zero), and far below real damage
ROUNDING = 1e-4

Array = NDArray[np.float64]
Features = ArrayLike | torch.Tensor


class FrechetWarning(UserWarning):
    """The distance can be computed, but a covariance in it is singular for want of samples."""


@dataclass(frozen=True, eq=False)
class GaussianStats:
    """Count, mean (d,) and unbiased covariance (d, d) of features, and what they are features of.

    ``n`` is None where a foreign file does not tell it. ``extractor`` names the network (with the
    hash of its weights) and ``preprocess`` what was done to the images before it. Raises
    ``UserError``: not finite, or shapes that do not fit.
    """

    n: int | None
    mu: Array
    sigma: Array
    extractor: str
    preprocess: str

    def __post_init__(self) -> None:
        d = self.mu.size
        if self.mu.shape != (d,) or self.sigma.shape != (d, d):
            shapes = f"mean of shape {self.mu.shape} and covariance of shape {self.sigma.shape}"
            raise UserError(f"{shapes} do not fit, expected (d,) and (d, d)")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise UserError(f"statistics of {self.extractor} features are not finite")

    @property
    def dimension(self) -> int:
        return self.mu.size

    @classmethod
    def from_features(cls, features: Features, extractor: str, preprocess: str) -> Self:
        """The statistics of ``features`` (n, d), of any real dtype and on any device."""
        x = _matrix(features)
        mu = x.mean(axis=0)
        centred = x - mu
        sigma = centred.T @ centred / max(len(x) - 1, 1)
        return cls(len(x), mu, sigma, extractor, preprocess)

    def write(
        self, path: Path, spatial: "GaussianStats | None" = None, **more: NDArray[Any]
    ) -> None:
        """Write an npz of ``mu``, ``sigma`` (as pytorch-fid does), our other fields, and ``more``.

        ``spatial``: statistics of the same images' spatial features, for ``mu_s`` and ``sigma_s``.
        """
        arrays = {**{name: np.array(value) for name, value in vars(self).items()}, **more}
        if spatial is not None:
            arrays |= {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
        with path.open("wb") as file:  # by handle: np.savez appends .npz to a bare name
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(
        cls,
        path: Path,
        extractor: str | None = None,
        preprocess: str | None = None,
        suffix: str = "",
    ) -> Self:
        """Read an npz with ``mu`` and ``sigma``, ours or another project's.

        ``suffix``: what these two names end in ("_s" for those of spatial features in ADM's files).

        ``extractor`` and ``preprocess`` say what a foreign file does not; a file that says so
        itself is believed, and must agree with them. Raises ``UserError``: no such file, or what it
        holds are no statistics; with its name.
        """
        names = f"mu{suffix}", f"sigma{suffix}"
        held = read_npz(path, (*names, "n", "extractor", "preprocess"))
        if missing := set(names) - held.keys():
            with np.load(path, allow_pickle=False) as file:
                raise UserError(f"{path} lacks {sorted(missing)} (it holds: {sorted(file.files)})")

        def name(key: str, given: str | None) -> str:
            stored = str(held[key]) if key in held else given
            if stored is None:
                raise UserError(f"{path} does not name its {key}: pass it")
            if given not in (None, stored):
                raise UserError(f"{path} is of {key} {stored!r}, expected {given!r}")
            return stored

        what = name("extractor", extractor), name("preprocess", preprocess)
        try:
            n = int(held["n"]) if "n" in held else None
            mu, sigma = (np.asarray(held[key], dtype=np.float64) for key in names)
            read = cls(n, mu, sigma, *what)
            _check_covariance(sigma)
        except (TypeError, ValueError) as error:  # also of arrays that hold no numbers
            raise UserError(f"{path}: {error}") from None
        return read


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of an npz that are named in ``keys``; ``UserError`` if there is no npz."""
    with _opened(path) as file:
        return {key: file[key] for key in keys if key in file.files}


def names_in_npz(path: Path) -> set[str]:
    """The names of an npz' arrays, which are not read; ``UserError`` if there is no npz."""
    with _opened(path) as file:
        return set(file.files)


def shapes_in_npz(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an npz' arrays, by their headers alone; ``UserError`` if there is no npz."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    with _opened(path) as file:
        for name in file.files:
            with file.zip.open(f"{name}.npy") as array:
                header = read.get(np.lib.format.read_magic(array))
                shapes[name] = header(array)[0] if header else file[name].shape
    return shapes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an npz that can be read ({error})") from None
    except (ValueError, EOFError, TypeError, AttributeError):  # numpy advises to unpickle it
        raise UserError(f"{path} is not an npz of statistics (mu, sigma) or images") from None


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """The Frechet distance d^2 of two Gaussians; the square of the features' unit.

    Raises ``UserError`` for fewer than two samples or statistics of different kinds; warns
    (``FrechetWarning``) of no more samples than dimensions.
    """
    for field in ("extractor", "preprocess", "dimension"):
        mine, theirs = getattr(a, field), getattr(b, field)
        if mine != theirs:
            raise UserError(f"statistics of different {field}: {mine!r} and {theirs!r}")
    for n in (a.n, b.n):
        if n is None:  # a foreign file; its makers knew
            continue
        if n < 2:
            raise UserError(f"a Frechet distance needs at least 2 samples on each side, got {n}")
        if n <= a.dimension:
            singular = f"{n} samples in {a.dimension} dimensions: the covariance is singular"
            warnings.warn(singular, FrechetWarning, 2)
    A, B = _factor(a.sigma), _factor(b.sigma)
    cross = scipy.linalg.svdvals(A.T @ B).sum()
    total = np.sum((a.mu - b.mu) ** 2) + np.sum(A**2) + np.sum(B**2) - 2 * cross
    return max(float(total), 0.0)  # below zero by rounding alone


def _factor(sigma: Array) -> Array:
    """A with AA' = ``sigma``, which may be singular.

    Eigenvalues that rounding explains count as 0, above it, too: which side of 0 they come out at
    differs between processors, and the root of 1e-16 is 1e-8.
    """
    if len(sigma) >= LARGE:  # Cholesky's takes a thirtieth of the time, if sigma is definite
        with contextlib.suppress(scipy.linalg.LinAlgError):
            return np.asarray(scipy.linalg.cholesky((sigma + sigma.T) / 2, lower=True))
    values, vectors = scipy.linalg.eigh((sigma + sigma.T) / 2)
    rounding = len(sigma) * np.finfo(np.float64).eps * values[-1]
    return np.asarray(vectors * np.sqrt(np.where(values > rounding, values, 0)))


def _matrix(features: Features) -> Array:
    """``features`` as finite float64 (n, d), n > 0."""
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"features have shape {x.shape}, expected (samples, dimensions)")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise UserError(f"features are not finite in {bad} of {len(x)} samples")
    return x


def _check_covariance(sigma: Array) -> None:
    # a Cholesky factor takes 0.2 s in 2048 dimensions: eigenvalues are only found to tell them
    rounding = ROUNDING * (np.linalg.norm(sigma) or 1.0)
    apart = np.abs(sigma - sigma.T)
    if apart.max() > rounding:
        i, j = np.unravel_index(apart.argmax(), apart.shape)
        entries = f"sigma[{i},{j}] is {sigma[i, j]:.6g}, sigma[{j},{i}] is {sigma[j, i]:.6g}"
        raise UserError(f"sigma is no covariance: {entries}")
    try:
        np.linalg.cholesky(sigma + rounding * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(sigma)
        spectrum = f"its eigenvalues are {values[0]:.3g} to {values[-1]:.3g}, expected none below 0"
        raise UserError(f"sigma is no covariance: {spectrum}") from None
