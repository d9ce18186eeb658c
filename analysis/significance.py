"""Which methods of a table are not significantly worse than the best of their column.

A test of each method against the *observed* best of its column, with Holm over the steps of each
method, is wrong: the best was chosen for being low, and there are as many families as methods. With
all methods equal, such a table declared some different in 24 to 74% of experiments. All pairs of
all columns in one family, as here, do so in at most 5%, whichever methods are equal.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

Array = NDArray[np.float64]

BLOCK = 2**20  # differences held at a time: 2,000 methods in one column have two million pairs


def shown_worse(table: Array) -> Array:
    """For each place, how sure it is that another method of its column is better (lower).

    Args:
        table: (methods, steps, seeds); nan where there is no value. A pair is tested on the seeds
            that both have, on logarithms where the whole column is positive.

    Returns:
        (methods, steps): the smallest p-value among the pairs in which the other one was lower, by
        a paired t-test and Holm over all pairs of the table; nan where there is no such pair. Where
        it is at most alpha, the method is not the best of its column, and with probability
        1 - alpha no such statement in the table is wrong.
    """
    methods, steps, _ = table.shape
    smallest = np.full((methods, steps), np.nan)
    tested, count = np.empty(steps * methods * (methods - 1) // 2), 0
    for step in range(steps):
        column = table[:, step]
        positive = bool(np.all(column[~np.isnan(column)] > 0))
        values = np.log(column) if positive else column
        added, smallest[:, step] = _pairs(values, tested[count:])
        count += added
    order = tested[:count]
    order.sort()
    known = ~np.isnan(smallest)
    # p-values that are equal have equal adjusted ones, so each place finds its own by value
    places = np.searchsorted(order, smallest[known])
    smallest[known] = holm_in_order(order)[places]
    return smallest


def _pairs(values: Array, tested: Array) -> tuple[int, Array]:
    """Put p of every pair i < j of (methods, seeds) into ``tested``; a pair needs two common seeds.

    Returns how many there are, and of each method the least p of those in which it is higher.
    """
    n_methods, n_seeds = values.shape
    has = ~np.isnan(values)
    filled = np.where(has, values, 0.0)
    least = np.full(n_methods, np.nan)
    count = 0
    rows = max(1, BLOCK // max(1, n_methods * n_seeds))
    for start in range(0, n_methods - 1, rows):
        i = np.arange(start, min(start + rows, n_methods - 1))
        both = has[i, None] & has[None, start + 1 :]
        n = both.sum(-1)
        difference = np.where(both, filled[i, None] - filled[None, start + 1 :], 0.0)
        mean, p = _t_test(difference, both, n)
        upper = np.arange(start + 1, n_methods)[None] > i[:, None]
        p = np.where(upper & (n >= 2), p, np.nan)
        known = p[~np.isnan(p)]
        tested[count : count + len(known)] = known
        count += len(known)
        for part, worse, axis in ((i, mean > 0, 1), (slice(start + 1, None), mean < 0, 0)):
            lower = np.fmin.reduce(np.where(worse, p, np.nan), axis=axis, initial=np.nan)
            least[part] = np.fmin(least[part], lower)
    return count, least


def _t_test(difference: Array, both: NDArray[np.bool_], n: NDArray[np.int_]) -> tuple[Array, Array]:
    """Mean and two-sided p over the last axis, where ``both``; as ``statistics.t_test``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = difference.sum(-1) / n
        deviation = np.where(both, difference - mean[..., None], 0.0)
        error = np.sqrt((deviation**2).sum(-1) / (n - 1) / n)
        p = 2 * stdtr(n - 1, -np.abs(mean / error))
    return mean, np.where((error == 0) & (mean == 0), 1.0, p)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjustment of (m,) p-values; nan stays nan and is no member of the family.

    Adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), in ascending order
    (Holm 1979, A simple sequentially rejective multiple test procedure).
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = holm_in_order(p[order])
    return adjusted


def holm_in_order(p: Array) -> Array:
    """``holm`` of (m,) p-values that ascend and hold no nan, in their own memory."""
    p *= np.arange(len(p), 0, -1)
    np.minimum(1.0, p, out=p)
    return np.maximum.accumulate(p, out=p)
