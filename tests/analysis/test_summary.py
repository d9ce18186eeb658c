"""From a frame to the numbers of a table: means, ranks, ties, refusals, accounting of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.synthetic_runs import Run, write_run, write_sweep
from scipy import stats

from fewstep.analysis import Summary, load, load_samples, summarise
from fewstep.errors import UserError


def seeds(title: str, per_seed: Sequence[float], steps: int = 1, **more: Any) -> list[Run]:
    return [Run(title, seed, {steps: value}, **more) for seed, value in enumerate(per_seed)]


def summary_of(tmp_path: Path, runs: Sequence[Run], **filters: Any) -> Summary:
    return summarise(load(write_sweep(tmp_path, runs)), **filters)


def test_mean_interval_and_order(tmp_path: Path) -> None:
    runs = [Run("Z", s, {4: 2.0 + s, 1: 8.0 + 2 * s}) for s in range(3)]
    summary = summary_of(tmp_path, [*runs, *seeds("A", [5, 5, 5])])
    assert summary.methods == ("Z", "A")  # the sweep's order, not the alphabet's
    assert summary.steps == (1, 4)
    cell = summary.cells["Z", 1]
    assert (cell.mean, cell.n, cell.n_expected) == (10.0, 3, 3)
    assert cell.half_width == pytest.approx(2 * stats.t.ppf(0.975, 2) / math.sqrt(3))
    assert cell.keys == ("z-s0", "z-s1", "z-s2")
    assert summary.floor == 1.5


def test_two_floors_of_one_metric_are_two_metrics(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, seeds("A", [5, 6, 7])))
    frame.loc[0, "floor"] = 1.502  # another machine's rounding
    assert summarise(frame).floor == pytest.approx((1.5 + 1.502) / 2)
    frame.loc[0, "floor"] = 1.6
    with pytest.raises(UserError, match=r"has two floors, 1.5 \(run a-s1\) and 1.6 \(run a-s0\)"):
        summarise(frame)


def test_failed_missing_and_stopped_runs_are_counted_not_averaged(tmp_path: Path) -> None:
    runs = [
        Run("A", 0, {1: 10.0, 2: 5.0}),
        Run("A", 1, {1: 20.0}),  # 2 steps were not evaluated
        Run("A", 2, {1: 1e9}, failure="nan"),  # the cell of an earlier attempt does not count
        Run("A", 3, {1: 1e9}, train_steps=100),
        Run("A", 4, done=False),
        Run("B", 0, failure="oom"),
    ]
    summary = summary_of(tmp_path, runs)
    one, two = summary.cells["A", 1], summary.cells["A", 2]
    assert (one.mean, one.n, one.n_failed, one.n_missing, one.n_expected) == (15.0, 2, 1, 1, 5)
    assert (two.mean, two.n, two.n_failed, two.n_missing) == (5.0, 1, 1, 2)
    assert one.stopped_seeds == two.stopped_seeds == (3,)  # which is no failure
    assert two.missing_seeds == (1, 4)
    b = summary.cells["B", 1]
    assert (b.n, b.n_failed, b.n_expected) == (0, 1, 1)
    assert math.isnan(b.mean)
    assert {(f.key, f.kind) for f in summary.failures} == {
        ("a-s2", "nan"), ("a-s3", "stopped"), ("b-s0", "oom")}  # fmt: skip


def test_runs_stopped_by_a_search_enter_a_table_only_when_asked(tmp_path: Path) -> None:
    runs = [Run("A", 0, {1: 10.0}), Run("A", 1, rungs={50: 30.0, 100: 20.0})]
    folder = write_sweep(tmp_path, runs)
    summary = summarise(load(folder))
    cell = summary.cells["A", 1]
    assert (cell.mean, cell.n, cell.n_failed, cell.n_stopped, cell.complete) == (10, 1, 0, 1, False)
    assert [(f.key, f.kind) for f in summary.failures] == [("a-s1", "stopped")]
    assert summary.conditions.train_steps == (500,)
    asked = summarise(load(folder, stopped=True))
    assert (asked.cells["A", 1].mean, asked.cells["A", 1].n) == (15.0, 2)
    assert asked.conditions.train_steps == (100, 500)  # so the table says that budgets differ
    assert [f.key for f in asked.failures] == ["a-s1"]


def test_a_stopped_run_is_no_failed_one_where_its_last_rung_counts(tmp_path: Path) -> None:
    runs = [Run("A", 0, {1: 10.0, 2: 5.0}), Run("A", 1, rungs={50: 30.0, 100: 20.0})]
    asked = summarise(load(write_sweep(tmp_path, runs), stopped=True))
    assert asked.steps == (1, 2)
    with_value, without = asked.cells["A", 1], asked.cells["A", 2]  # rungs look at 1 step
    assert (with_value.n, with_value.n_failed, with_value.n_stopped) == (2, 0, 0)
    assert (without.n, without.n_failed, without.stopped_seeds) == (1, 0, (1,))
    assert [(f.key, f.kind) for f in asked.failures] == [("a-s1", "stopped")]


def test_what_was_evaluated_before_a_later_cell_failed_stands(tmp_path: Path) -> None:
    runs = [Run("A", 0, {1: 1.0, 2: 1.0}), Run("A", 1, {1: 3.0}, failure="nan", reached=500)]
    summary = summary_of(tmp_path, runs)
    one, two = summary.cells["A", 1], summary.cells["A", 2]
    assert (one.mean, one.n, one.n_failed) == (2.0, 2, 0)
    assert (two.mean, two.n, two.failed_seeds) == (1.0, 1, (1,))
    assert [f.key for f in summary.failures] == ["a-s1"]


@pytest.mark.parametrize(("reached", "n"), [(200, 1), (500, 2)])
def test_a_running_run_counts_once_it_is_trained(tmp_path: Path, reached: int, n: int) -> None:
    folder = write_sweep(tmp_path, seeds("A", [1.0, 9.0], reached=reached))
    (folder / "a-s1" / "result.json").unlink()
    (folder / "a-s1" / "progress.json").write_text("{}")
    frame = load(folder)
    cell = summarise(frame).cells["A", 1]
    assert frame["status"].tolist() == ["done", "running"]
    assert (cell.n, cell.n_missing, cell.n_failed) == (n, 2 - n, 0)


def test_a_distance_that_is_nan_is_a_failure(tmp_path: Path) -> None:
    cell = summary_of(tmp_path, seeds("A", [1.0, math.nan])).cells["A", 1]
    assert (cell.mean, cell.n, cell.failed_seeds) == (1.0, 1, (1,))


def test_best_and_second_are_of_unrounded_means_and_complete_cells(tmp_path: Path) -> None:
    runs = [*seeds("A", [1.0000002] * 3), *seeds("B", [1.0000001] * 3), *seeds("C", [3.0] * 3)]
    lucky = [Run("D", 0, {1: 0.1}), Run("D", 1, failure="nan"), Run("D", 2, {1: 0.1})]
    cells = summary_of(tmp_path, [*runs, *lucky]).cells
    marks = {m: (cells[m, 1].best, cells[m, 1].second) for m in "ABCD"}
    assert marks == {"A": (False, True), "B": (True, False), "C": (False, False), "D": (0, 0)}


def test_equal_means_share_a_rank(tmp_path: Path) -> None:
    two = [*seeds("A", [1, 3]), *seeds("B", [3, 1]), *seeds("C", [4, 4])]
    cells = summary_of(tmp_path, two).cells
    assert [cells[m, 1].best for m in "ABC"] == [True, True, False]
    assert [cells[m, 1].second for m in "ABC"] == [False, False, False]
    seconds = [*seeds("A", [1, 1]), *seeds("B", [2, 3]), *seeds("C", [3, 2])]
    cells = summary_of(tmp_path / "b", seconds).cells
    assert [cells[m, 1].second for m in "ABC"] == [False, True, True]


def test_ties_are_of_all_pairs_by_seed_corrected_over_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(2, 0.5, (6, 2)))
    near = base * np.exp(rng.normal(0.04, 0.05, (6, 2)))
    far = base * np.exp(rng.normal(0.5, 0.02, (6, 2)))
    tables = {"best": base, "near": near, "far": far}
    runs = [
        Run(title, seed, {1: row[0], 2: row[1]})
        for title, values in tables.items()
        for seed, row in enumerate(values)
    ]
    cells = summary_of(tmp_path, runs).cells
    pairs = [("near", "best"), ("far", "best"), ("far", "near")]
    p = np.array([stats.ttest_rel(np.log(tables[a]), np.log(tables[b])).pvalue for a, b in pairs])
    order = np.argsort(p, axis=None)
    adjusted = np.empty(6)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p.ravel()[order] * np.arange(6, 0, -1)))
    near_best, far_best, far_near = adjusted.reshape(3, 2)
    got = {m: [cells[m, step].p_value for step in (1, 2)] for m in tables}
    np.testing.assert_allclose(got["near"], near_best)
    np.testing.assert_allclose(got["far"], np.minimum(far_best, far_near))
    assert [cells["near", s].tie for s in (1, 2)] == [True, True]
    assert [cells["far", s].tie for s in (1, 2)] == [False, False]  # though the spread overlaps
    assert not cells["near", 1].underpowered  # six seeds can tell
    assert math.isnan(cells["best", 1].p_value)
    assert not cells["best", 1].tie


def test_a_tie_of_three_seeds_is_underpowered_and_one_seed_tells_nothing(tmp_path: Path) -> None:
    b = summary_of(tmp_path, [*seeds("A", [1, 2, 3]), *seeds("B", [3, 2, 2])]).cells["B", 1]
    assert (b.tie, b.underpowered) == (True, True)
    one = summary_of(tmp_path / "1", [*seeds("A", [1]), *seeds("B", [3])]).cells["B", 1]
    assert not one.tie
    assert math.isnan(one.p_value)
    # but beside methods that were tested, what was not is not shown to be worse
    runs = [*seeds("A", [1, 1.1, 1.05]), *seeds("B", [3, 3.1, 3.2]), *seeds("C", [3])]
    mixed = summary_of(tmp_path / "3", runs).cells
    assert (mixed["C", 1].tie, mixed["C", 1].underpowered) == (True, True)


def test_negative_values_are_compared_by_differences(tmp_path: Path) -> None:
    a, b = [-1e-3, 1e-3, 0.0], [2e-3, 5e-3, 3e-3]
    cell = summary_of(tmp_path, [*seeds("A", a), *seeds("B", b)]).cells["B", 1]
    assert cell.p_value == pytest.approx(stats.ttest_rel(b, a).pvalue)


def test_comparison_with_a_baseline_uses_common_seeds(tmp_path: Path) -> None:
    runs = [*seeds("A", [2, 4, 8]), *seeds("B", [1, 1])]
    summary = summary_of(tmp_path, runs)
    got = summary.compare("A", "B", 1)
    assert (got.n, got.ratio) == (2, pytest.approx(math.sqrt(8)))
    with pytest.raises(UserError, match="unknown method 'C'"):
        summary.compare("C", "A", 1)


def mixed(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> Path:
    """One run that was evaluated twice; ``second`` overrides the second evaluation."""
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0}, **first)])
    write_run(folder / "a-s0", Run("A", 0, {1: 2.0}, **second))
    return folder


@pytest.mark.parametrize(
    ("second", "message", "choice"),
    [
        ({"cell": {"weights": "raw"}}, "one weights, got ema and raw", {"weights": "raw"}),
        ({"cell": {"guidance": 2.0}}, "one guidance, got 1.0 and 2.0", {"guidance": 2.0}),
    ],
)
def test_configurations_are_not_mixed(
    tmp_path: Path, second: dict[str, Any], message: str, choice: dict[str, Any]
) -> None:
    frame = load(mixed(tmp_path, {}, second))
    with pytest.raises(UserError, match=message):
        summarise(frame)
    assert summarise(frame, **choice).cells["A", 1].mean == 2.0


def sampled(folder: Path, table: Sequence[Sequence[float]], title: str = "A") -> None:
    """Write (seeds, sample sets) values of a method at one step; nan where there is no file."""
    for seed, values in enumerate(table):
        for number, value in enumerate(values):
            if not math.isnan(value):
                run = Run(title, seed, {1: value}, cell={"sample_set": number})
                write_run(folder / run.key, run)


def test_the_unit_is_the_seed_and_sampling_is_told_apart(tmp_path: Path) -> None:
    table = [[10.0, 12.0], [20.0, 24.0], [30.0, 30.0]]
    folder = write_sweep(tmp_path, seeds("A", [0, 0, 0]))
    sampled(folder, table)
    frame = load(folder)
    summary = summarise(frame)
    cell = summary.cells["A", 1]
    assert summary.conditions.sample_sets == (0, 1)
    assert dict(cell.values) == {0: 11.0, 1: 22.0, 2: 30.0}
    assert (cell.n, cell.mean, cell.keys) == (3, 21.0, ("a-s0", "a-s1", "a-s2"))
    assert cell.half_width == pytest.approx(  # of three values, not of six
        stats.t.ppf(0.975, 2) * np.std([11, 22, 30], ddof=1) / math.sqrt(3)
    )
    within = (2 + 8 + 0) / 3  # the mean of the variances of (10, 12), (20, 24), (30, 30)
    assert cell.sampling_sd == pytest.approx(math.sqrt(within))
    assert cell.seed_sd == pytest.approx(math.sqrt(np.var([11, 22, 30], ddof=1) - within / 2))
    one = summarise(frame, sample_set=1).cells["A", 1]
    assert dict(one.values) == {0: 12.0, 1: 24.0, 2: 30.0}
    assert math.isnan(one.sampling_sd)


def test_a_run_that_lacks_a_sample_set_of_the_table_is_missing(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [*seeds("A", [0, 0, 0]), *seeds("B", [1.0])])
    for file in folder.glob("a-*/evaluations/*.json"):
        file.unlink()
    sampled(folder, [[1.0, 2.0], [1.0, math.nan], [1.0, 3.0]])
    (broken,) = folder.glob("a-s2/evaluations/*-s1.json")
    broken.write_text(broken.read_text().replace("3.0", "NaN"))
    cells = summarise(load(folder)).cells
    a = cells["A", 1]
    assert (dict(a.values), a.missing_seeds, a.failed_seeds) == ({0: 1.5}, (1,), (2,))
    assert cells["B", 1].n_missing == 1
    assert summarise(load(folder), sample_set=0).cells["A", 1].n == 3


def test_two_metrics_are_not_mixed_even_under_one_label(tmp_path: Path) -> None:
    other = {"id": "ffff00000000"}
    frame = load(write_sweep(tmp_path, [*seeds("A", [1.0]), *seeds("B", [2.0], metric=other)]))
    with pytest.raises(UserError, match=r"one metric.*\[a1b2c3d4e5f6\].*\[ffff00000000\]") as error:
        summarise(frame)
    assert "\n" not in str(error.value)
    summary = summarise(frame, metric="ffff")
    assert summary.cells["B", 1].mean == 2.0
    assert summary.cells["A", 1].n_missing == 1
    with pytest.raises(UserError, match=r"no cells with metric 'FID' \(choices: FD-digits-cnn"):
        summarise(frame, metric="FID")


def test_a_sampler_may_differ_between_methods_but_not_within_one(tmp_path: Path) -> None:
    heun = {"sampler": {"solver": "heun"}}
    frame = load(write_sweep(tmp_path, [*seeds("A", [1.0]), *seeds("B", [2.0], cell=heun)]))
    samplers = summarise(frame).conditions.samplers
    assert samplers == {"A": "solver=euler", "B": "solver=heun"}
    two = [Run("A", 0, {1: 1.0}), Run("A", 1, {1: 5.0}, cell=heun), *seeds("B", [2.0])]
    frame = load(write_sweep(tmp_path / "2", two))
    with pytest.raises(UserError, match=r"'A' .*more than one sampler: solver=euler and solver=he"):
        summarise(frame)
    summary = summarise(frame, sampler="solver=heun")
    assert summary.cells["A", 1].mean == 5.0
    assert summary.cells["B", 1].mean == 2.0  # never had the choice, and keeps its own


def test_two_schedules_of_one_method_are_not_mixed(tmp_path: Path) -> None:
    given = {"times": [1.0, 0.3, 0.0]}
    frame = load(write_sweep(tmp_path, [Run("A", 0, {2: 1.0}), Run("A", 1, {2: 3.0}, cell=given)]))
    with pytest.raises(UserError, match=r"more than one times: uniform and 1 0\.3 0"):
        summarise(frame)
    assert summarise(frame, times="1 0.3 0").conditions.given_times == (("A", 2, "1 0.3 0"),)


def test_runs_that_the_label_can_not_tell_apart_are_refused(tmp_path: Path) -> None:
    twins = [Run("A", 0, {1: 1.0}), Run("A", 0, {1: 2.0}, objective="other")]
    frame = load(write_sweep(tmp_path, twins, plan=False))
    with pytest.raises(UserError, match=r"'A' has more than one run of seed 0: a-s0 and other-s0"):
        summarise(frame)


def test_a_sweep_of_failures_still_has_a_table(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, [Run("A", 0, failure="nan"), Run("B", 0, done=False)])
    assert summary.steps == (1, 2, 4)  # as planned
    assert summary.cells["A", 4].n_failed == 1
    assert summary.cells["B", 4].n_missing == 1
    assert summary.conditions.metric is None


def test_samples_are_of_one_seed_and_of_the_tables_cells(tmp_path: Path) -> None:
    def images(fill: int) -> dict[int, np.ndarray]:
        return {1: np.full((4, 1, 8, 8), fill, np.uint8)}

    folder = write_sweep(
        tmp_path,
        [Run("A", seed, {1: 1.0, 2: 1.0}, images=images(seed)) for seed in (3, 7)]
        + [Run("B", 3, failure="nan"), Run("B", 7, {1: 1.0}, images=images(9))],
    )
    frame = load(folder)
    low = load_samples(folder, frame)
    assert {place: int(a.max()) for place, a in low.items()} == {("A", 1): 3}
    high = load_samples(folder, frame, seed=7, weights="ema")
    assert {place: int(a.max()) for place, a in high.items()} == {("A", 1): 7, ("B", 1): 9}
    with pytest.raises(UserError, match=r"unknown seed 5 \(choices: 3, 7\)"):
        load_samples(folder, frame, seed=5)


def test_where_higher_is_better_the_highest_is_best(tmp_path: Path) -> None:
    runs = [
        *seeds("A", [0.4, 0.5, 0.6]),
        *seeds("B", [0.8, 0.9, 0.85]),
        *seeds("C", [0.1, 0.2, 0.3]),
    ]
    for better, best, second in (("higher", "B", "A"), ("lower", "C", "A"), ("neither", "", "")):
        folder = write_sweep(tmp_path / better, runs)
        for file in folder.glob("*/evaluations/*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"better": better}))
        cells = summarise(load(folder)).cells
        assert [m for (m, _), c in cells.items() if c.best] == [best] * bool(best)
        assert [m for (m, _), c in cells.items() if c.second] == [second] * bool(second)


def test_a_table_holds_frechet_distances_unless_told_otherwise(tmp_path: Path) -> None:
    runs = [Run("A", 0, {1: 3.0}), Run("A", 1, {1: 4.0})]
    folder = write_sweep(tmp_path, runs)
    for file in folder.glob("*/evaluations/*.json"):
        record = json.loads(file.read_text())
        kid = {
            **record["metric"],
            "name": "KID",
            "label": "KID-digits-cnn@597",
            "id": "cafe00000000",
        }
        other = {**record, "metric": kid, "value": 0.1, "error": 0.02}
        file.with_stem(f"{file.stem}-kid").write_text(json.dumps(other))
    frame = load(folder)
    assert frame["error"].dropna().tolist() == [0.02, 0.02]
    assert summarise(frame).cells["A", 1].mean == 3.5
    for told in ("KID", "kid", "KID-digits-cnn@597", "cafe"):
        assert summarise(frame, metric=told).cells["A", 1].mean == pytest.approx(0.1)
