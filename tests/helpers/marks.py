"""Simulated tables whose truth is known: how often their marks are wrong, and what they find.

``python tests/helpers/marks.py`` prints the table of docs/concepts/statistics.md; the tests ask for
less.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from fewstep.analysis.significance import holm, shown_worse
from fewstep.analysis.statistics import t_test

STEPS = 6
SEEDS = (3, 5, 10)
# sd of log FD from seed to seed: on digits methods differ in it
SPREADS = np.array([0.03, 0.1, 0.06, 0.18])
ALIKE = np.array([0.1])


def tables(
    rng: np.random.Generator,
    count: int,
    effects: np.ndarray,
    seeds: int,
    spreads: np.ndarray,
    *,
    between: float = 0.3,
    along: float = 0.8,
) -> np.ndarray:
    """(count, methods, steps, seeds): log-normal, with correlations ``between`` methods of one seed
    and ``along`` the steps of one run, as on digits; ``effects`` (methods, steps) move the logs."""
    methods = len(effects)

    def over_steps(methods: int) -> np.ndarray:
        a, b = rng.standard_normal((2, count, methods, STEPS, seeds))
        return math.sqrt(along) * a[:, :, :1] + math.sqrt(1 - along) * b

    noise = math.sqrt(between) * over_steps(1) + math.sqrt(1 - between) * over_steps(methods)
    noise *= np.resize(spreads, methods)[:, None, None]
    return np.exp(1.5 + effects[:, :, None] + noise)


def equal(methods: int) -> np.ndarray:
    return np.zeros((methods, STEPS))


def half(methods: int) -> np.ndarray:
    """Half of them are best, half are half as good."""
    return np.repeat(np.log(2) * (np.arange(methods) >= methods // 2), STEPS).reshape(-1, STEPS)


def worse_than_the_best(table: np.ndarray) -> np.ndarray:
    """p of each method against the observed best of its column, Holm over the steps of each method.

    What a table here does not do: it is wrong far too often.
    """
    logs = np.log(table)
    best = np.exp(logs).mean(-1).argmin(0)
    p = t_test(logs - logs[best, range(STEPS)])
    p[best, range(STEPS)] = np.nan
    return np.array([holm(row) for row in p])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2000, help="simulated for each number")
    count: int = parser.parse_args().tables
    independent = {"between": 0.0, "along": 0.0}
    print("| methods, what is true | seeds | wrong: against the best | wrong: all pairs | found |")
    print("|---|---:|---:|---:|---:|")
    for what, truth, spreads, correlated in (
        ("all equal", equal, ALIKE, independent),
        ("all equal, spreads and correlations of digits", equal, SPREADS, {}),
        ("half of them twice as bad, the same", half, SPREADS, {}),
    ):
        for methods in (4, 10):
            effects, rows = truth(methods), []
            worse = effects > effects.min(axis=0)
            for seeds in SEEDS:
                rng = np.random.default_rng(seeds)
                made = tables(rng, count, effects, seeds, spreads, **correlated)
                old = [(worse_than_the_best(table)[~worse] <= 0.05).any() for table in made]
                now = [shown_worse(table) <= 0.05 for table in made]
                wrong = [bool(told[~worse].any()) for told in now]
                found = [told[worse].mean() for told in now] if worse.any() else [math.nan]
                rows.append([np.mean(old), np.mean(wrong), np.mean(found)])
            cells = [
                " / ".join("" if math.isnan(x) else f"{100 * x:.{digits}f}" for x in column)
                for column, digits in zip(zip(*rows, strict=True), (0, 1, 0), strict=True)
            ]
            shown = [f"{cell}%" if any(c.isdigit() for c in cell) else "" for cell in cells]
            seeds_told = " / ".join(map(str, SEEDS))
            print("|", " | ".join([f"{methods}, {what}", seeds_told, *shown]), "|", flush=True)


if __name__ == "__main__":
    main()
