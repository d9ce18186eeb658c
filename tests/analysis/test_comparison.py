"""Two sweeps side by side: paired by seed, one family of tests, and never two kinds of numbers."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.synthetic_runs import Run, write_sweep
from scipy import stats

from fewstep.analysis import Summary, compare, load, load_samples, summarise
from fewstep.analysis.significance import holm
from fewstep.analysis.statistics import PairedDifference, PairedRatio
from fewstep.errors import UserError
from fewstep.reports.tables import comparison

RNG = np.random.default_rng(0)
OLD = {m: RNG.lognormal(2, 0.2, (5, 2)) for m in ("FM", "sCM")}
NEW = {"FM": OLD["FM"] * RNG.lognormal(-0.5, 0.05, (5, 2)), "sCM": OLD["sCM"] * 1.001}


def runs(values: dict[str, np.ndarray], **more: Any) -> list[Run]:
    return [
        Run(title, seed, {1: row[0], 4: row[1]}, **more)
        for title, table in values.items()
        for seed, row in enumerate(table)
    ]


def summary(root: Path, name: str, members: list[Run], **filters: Any) -> Summary:
    return summarise(load(write_sweep(root, members, name=name)), **filters)


def test_methods_of_both_are_compared_by_seed_with_holm_over_the_table(tmp_path: Path) -> None:
    new = summary(tmp_path, "new", [*runs(NEW), Run("only", 0, {1: 1.0})])
    made = compare(new, summary(tmp_path, "old", runs(OLD)))
    assert made.pairs == (("FM", "FM"), ("sCM", "sCM"))
    assert (made.first, made.second, made.steps) == ("new", "old", (1, 4))
    p = [stats.ttest_rel(np.log(NEW[m]), np.log(OLD[m])).pvalue for m in ("FM", "sCM")]
    got = [[made.cells[m, m, s].p_value for s in (1, 4)] for m in ("FM", "sCM")]
    np.testing.assert_allclose(got, holm(np.ravel(p)).reshape(2, 2), rtol=1e-6)
    cell = made.cells["FM", "FM", 4]
    assert isinstance(cell.paired, PairedRatio)
    assert cell.paired.ratio == pytest.approx(stats.gmean(NEW["FM"][:, 1] / OLD["FM"][:, 1]))
    assert (cell.significant, cell.underpowered, cell.seeds) == (True, False, (0, 1, 2, 3, 4))
    with pytest.warns(
        DeprecationWarning, match="is called Compared.significant"
    ):  # the name in 0.1
        assert cell.distinguished
    with pytest.warns(DeprecationWarning, match="is called Comparison.unpaired_seeds"):
        assert made.alone() == made.unpaired_seeds()


def test_sweeps_on_other_data_or_with_another_floor_are_not_compared(tmp_path: Path) -> None:
    new, old = summary(tmp_path, "new", runs(NEW)), summary(tmp_path, "old", runs(OLD))
    for name, version in (("new", "a" * 64), ("old", "b" * 64)):
        for folder in (tmp_path / name).glob("*-s*"):
            parts = {"train": 1, "test": 1, "train_sha256": version, "num_classes": 0}
            record = {"name": "digits", "sha256": version, "classes": [], **parts}
            (folder / "data.json").write_text(json.dumps(record))
    on = [summarise(load(tmp_path / name)) for name in ("new", "old")]
    with pytest.raises(UserError, match=r"'new' has aaaaaaaaaaaa \(run .*'old' has bbbbbbbbbbbb"):
        compare(*on)
    compare(on[0], on[0], baseline="FM")
    compare(on[0], old)  # of which it is not known
    with pytest.raises(UserError, match=r"two floors, 1\.5 in sweep 'new' and 1\.6 in sweep 'old'"):
        compare(new, summary(tmp_path, "old", runs(OLD, floor=1.6)))
    compare(new, summary(tmp_path, "old", runs(OLD, floor=1.5000001)))


def test_the_other_way_round_is_the_inverse(tmp_path: Path) -> None:
    new, old = summary(tmp_path, "new", runs(NEW)), summary(tmp_path, "old", runs(OLD))
    there, back = compare(new, old), compare(old, new)
    for place, cell in there.cells.items():
        a, b = cell.paired, back.cells[place].paired
        assert isinstance(a, PairedRatio)
        assert isinstance(b, PairedRatio)
        assert (a.ratio, a.low, a.high) == pytest.approx((1 / b.ratio, 1 / b.high, 1 / b.low))


def test_a_method_against_a_baseline_of_another_sweep_or_of_its_own(tmp_path: Path) -> None:
    new, old = summary(tmp_path, "new", runs(NEW)), summary(tmp_path, "old", runs(OLD))
    assert compare(new, old, method="sCM", baseline="FM").pairs == (("sCM", "FM"),)
    assert compare(new, old, baseline="FM").pairs == (("FM", "FM"), ("sCM", "FM"))
    own = compare(old, old, baseline="FM")
    assert own.pairs == (("sCM", "FM"),)
    assert own.cells["sCM", "FM", 1].paired.n == 5
    with pytest.raises(UserError, match=r"baseline of its own.*choices: FM, sCM"):
        compare(old, old)
    with pytest.raises(UserError, match=r"unknown method 'FN' of sweep 'old'; did you mean 'FM'"):
        compare(new, old, baseline="FN")
    with pytest.raises(UserError, match="'FM' is the only method"):
        compare(old, old, method="FM", baseline="FM")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": {"id": "ffff00000000", "label": "FD-x@9"}},
         r"sweep 'new' has FD-x@9 \[ffff00000000\], sweep 'old' has FD-digits-cnn@597 \[a1b2"),
        ({"cell": {"weights": "raw"}}, r"'new' has weights raw, sweep 'old' has weights ema"),
        ({"cell": {"guidance": 2.0}}, r"'new' has guidance 2.0, sweep 'old' has guidance 1.0"),
        ({"cell": {"sample_set": 1}}, r"'new' has sample sets 1, sweep 'old' has sample sets 0"),
    ],
)  # fmt: skip
def test_numbers_of_two_kinds_are_refused_and_both_named(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    new = summary(tmp_path, "new", runs(NEW, **more))
    with pytest.raises(UserError, match=message):
        compare(new, summary(tmp_path, "old", runs(OLD)))


def test_what_has_nothing_in_common_is_told(tmp_path: Path) -> None:
    old = summary(tmp_path, "old", [Run("A", 0, {1: 1.0}), Run("A", 1, {1: 1.0})])
    for members, message in (
        ([Run("B", 0, {1: 1.0})], "no method in common: sweep 'x' has B, sweep 'old' has A"),
        ([Run("A", 0, {2: 1.0})], "no number of steps in common: sweep 'x' has 2, .*'old' has 1"),
        ([Run("A", 7, {1: 1.0})], "no seed in common: sweep 'x' has 7, sweep 'old' has 0, 1"),
        ([Run("A", 0, failure="nan")], "sweep 'x' has no evaluated cells"),
    ):
        with pytest.raises(UserError, match=message):
            compare(summary(tmp_path / members[0].key / str(message), "x", members), old)


def test_values_that_may_be_negative_are_subtracted(tmp_path: Path) -> None:
    a = summary(tmp_path, "a", [Run("A", s, {1: v}) for s, v in enumerate([-1.0, 2.0, 1.0])])
    b = summary(tmp_path, "b", [Run("A", s, {1: v}) for s, v in enumerate([1.0, 1.0, 1.5])])
    cell = compare(a, b).cells["A", "A", 1]
    assert isinstance(cell.paired, PairedDifference)
    assert cell.paired.difference == pytest.approx(-0.5)
    assert cell.underpowered
    assert "Δ -0.500 [" in comparison.markdown(compare(a, b)).replace("\\", "")


def test_within_a_sweep_it_says_what_is_left_out_and_how_it_was_measured(tmp_path: Path) -> None:
    """A seed that only one method has, a method that failed, and Heun beside Euler."""
    members = [Run("A", s, {1: 1.0 + s, 2: 1.0 + s}) for s in range(3)]
    members += [Run("B", s, {1: 2.0 + s}, nfe_per_step=2) for s in (0, 2)]
    members += [Run("C", s, failure="nan") for s in range(3)]
    one = summary(tmp_path, "x", members)
    made = compare(one, one, baseline="A")
    lines = comparison.markdown(made).replace("\\", "").splitlines()
    page = [line.split(" | ") for line in lines if line.startswith(("| B", "| C"))]
    assert [row[1].split(" [")[0] for row in page] == ["1.63", "failed (3/3)"]
    assert [row[2] for row in page] == ["not evaluated |", "failed (3/3) |"]
    words = comparison.caption(made)
    assert "left out: 0, 1 and 2 of A" in words  # at two steps, none has another
    assert "B takes 2 function evaluations (NFE)." in words
    assert "EMA weights" in words
    assert "500 training steps" in words
    assert "Holm over the one comparison of this table" in words
    pair = [Run(m, 0, {1: v}) for m, v in (("A", 1.0), ("B", 2.0))]
    single = summary(tmp_path / "1", "x", pair)
    words = comparison.caption(compare(single, single, baseline="A"))
    assert "nothing is tested" in words
    assert "Holm" not in words


def test_it_is_shown_with_what_differs(tmp_path: Path) -> None:
    longer = runs({"F|M": NEW["FM"]}, train_steps=900)
    new = summary(tmp_path, "ne_w", [*longer, Run("F|M", 9, {1: 1.0}, train_steps=900)])
    made = compare(new, summary(tmp_path, "old", runs({"F|M": OLD["FM"]})))
    page = comparison.markdown(made)
    assert page.startswith("# ne\\_w / old\n")
    row = next(line for line in page.splitlines() if line.startswith("| F"))
    assert row.startswith(r"| F\|M | 0.")
    assert row.count(r" (5) \*") == 2
    words = comparison.caption(made)
    assert "Budgets differ: 900 training steps in ne_w, 500 in old." in words
    assert "Seeds without a partner are left out: 9 of F|M in ne_w." in words
    assert "Holm over the 2 comparisons" in words
    rows = list(csv.DictReader(io.StringIO(comparison.csv(made))))
    assert [float(r["estimate"]) for r in rows] == [
        c.paired.ratio for c in made.cells.values() if isinstance(c.paired, PairedRatio)
    ]
    assert rows[0]["seeds"] == "0 1 2 3 4"


def test_one_pair_has_a_ratio_and_no_test(tmp_path: Path) -> None:
    a, b = (summary(tmp_path, n, [Run("A", 0, {1: v})]) for n, v in (("a", 1.0), ("b", 2.0)))
    cell = compare(a, b).cells["A", "A", 1]
    assert (cell.paired.n, cell.significant, math.isnan(cell.p_value)) == (1, False, True)
    assert comparison.shown(compare(a, b), ("A", "A", 1)) == "0.500 (1)"


def test_a_table_over_several_sweeps_names_them_where_labels_clash(tmp_path: Path) -> None:
    image = {1: np.full((2, 1, 8, 8), 7, np.uint8)}
    one = write_sweep(tmp_path, [Run("FM", 0, {1: 3.0}), Run("sCM", 0, {1: 2.0})], name="one")
    two = write_sweep(tmp_path, [Run("FM", 0, {1: 4.0}, images=image)], name="two")
    frame = load(one, two)  # the same keys in both: another sweep, another run
    together = summarise(frame)
    assert together.sweep == "one + two"
    assert together.methods == ("FM · sweep=one", "sCM", "FM · sweep=two")
    assert [together.cells[m, 1].mean for m in together.methods] == [3.0, 2.0, 4.0]
    assert list(load_samples([one, two], frame)) == [("FM · sweep=two", 1)]
    with pytest.raises(UserError, match="two sweeps have the name 'one'"):
        load(one, tmp_path / "elsewhere" / "one")
    with pytest.raises(UserError, match="no sweep"):
        load()


def test_a_table_over_two_metrics_is_refused_and_names_both(tmp_path: Path) -> None:
    one = write_sweep(tmp_path, [Run("A", 0, {1: 3.0})], name="one")
    other = {"id": "ffff00000000", "label": "FD-x@9"}
    two = write_sweep(tmp_path, [Run("B", 0, {1: 4.0}, metric=other)], name="two")
    with pytest.raises(UserError, match=r"FD-digits-cnn@597 \[a1b2.*FD-x@9 \[ffff"):
        summarise(load(one, two))
