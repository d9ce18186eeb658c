"""Metrics against closed forms and brute force, and that they notice what they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import tiny
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from fewstep.errors import UserError
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.data import DATA, Dataset, to_model, to_uint8
from fewstep.experiments.evaluation.measurement import MetricInstance, metric_instances
from fewstep.experiments.extractors import EXTRACTORS
from fewstep.experiments.metrics import (
    KID,
    METRICS,
    Authenticity,
    Coverage,
    Density,
    FDInf,
    Memorisation,
    Precision,
    Recall,
    at_infinity,
    bias_curve,
    neighbours,
)
from fewstep.experiments.metrics.base import layer_of
from fewstep.experiments.metrics.frechet_distance import GaussianStats
from fewstep.experiments.metrics.reference import Reference
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.validation import check

Array = NDArray[np.float64]
ALL = [name for name in METRICS.names() if not layer_of(METRICS[name])]  # that need no Inception


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Array:
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


# ------------------------------------------------------------------------------------------- KID


def test_kid_is_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(17, 3, 0), normal(11, 3, 1, shift=0.5)

    def k(a: Array, b: Array) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def within(z: Array) -> float:
        return float(np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    cross = np.mean([k(a, b) for a in x for b in y])
    expected = within(x) + within(y) - 2 * cross
    assert KID().of(x, y).value == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("fewstep.experiments.metrics.kid.ENTRIES", 40)  # in blocks of 3 or 2 rows
    assert KID().of(x, y).value == pytest.approx(expected, rel=1e-12)


def test_kid_of_known_gaussians_is_unbiased_and_its_error_honest() -> None:
    """In one dimension E k(x, y) = E (xy + 1)^3 = 1 + 3 m m' + 3 s s' + t t', with raw moments."""

    def moments(mu: float, sd: float) -> tuple[float, float, float]:
        return mu, mu**2 + sd**2, mu**3 + 3 * mu * sd**2

    p, q = moments(0.0, 1.0), moments(0.4, 1.2)
    weights = (3, 3, 1)
    exact = sum(w * (a - b) ** 2 for w, a, b in zip(weights, p, q, strict=True))
    pairs = [(normal(200, 1, 2 * i, 0.4, 1.2), normal(150, 1, 2 * i + 1)) for i in range(600)]
    found = [KID().of(x, y) for x, y in pairs]
    values, errors = np.array([(v.value, v.error) for v in found], dtype=float).T
    standard = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - exact) < 4 * standard
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_kid_of_one_distribution_is_zero_in_the_mean_and_its_error_on_the_safe_side() -> None:
    found = [KID().of(normal(60, 8, 2 * i), normal(60, 8, 2 * i + 1)) for i in range(400)]
    values, errors = np.array([(v.value, v.error) for v in found], dtype=float).T
    assert abs(values.mean()) < 4 * values.std() / 20
    assert (values < 0).mean() > 0.2  # unbiased, so it may be negative
    assert 1 < np.sqrt((errors**2).mean()) / values.std() < 3


def test_kernel_settings() -> None:
    x, y = normal(9, 2, 0), normal(8, 2, 1)
    linear = KID(degree=1, gamma=1.0, coef=5.0).of(x, y).value  # |mean x - mean y|^2, unbiased
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    spread = x.var(0, ddof=1).sum() / 9 + y.var(0, ddof=1).sum() / 8
    assert linear == pytest.approx(gap - spread, rel=1e-11)
    with pytest.raises(UserError, match=r"KID needs at least 2"):
        KID().of(x[:1], y)


# ------------------------------------------------------------------------------ nearest neighbours


def brute(samples: Array, real: Array, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(sample j in the ball of real i), (real i in the ball of sample j), both (N, M)."""
    apart = cdist(samples, real)
    reach_real = np.sort(cdist(real, real), axis=1)[:, k]
    reach_samples = np.sort(cdist(samples, samples), axis=1)[:, k]
    return apart <= reach_real, apart <= reach_samples[:, None]


@pytest.mark.parametrize("entries", [neighbours.ENTRIES, 200])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (25, 60)])
def test_manifold_metrics_are_their_definitions(
    n: int, m: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ENTRIES", entries)
    samples, real = normal(n, 3, 0, 0.4), normal(m, 3, 1)
    for k in (1, 3, 5):
        in_real, in_samples = brute(samples, real, k)
        assert Precision(k).of(samples, real) == in_real.any(axis=1).mean()
        assert Recall(k).of(samples, real) == in_samples.any(axis=0).mean()
        assert Density(k).of(samples, real) == pytest.approx(in_real.sum() / (k * n), rel=1e-14)
        assert Coverage(k).of(samples, real) == in_real.any(axis=0).mean()


def test_coverage_of_reals_by_reals_is_what_chance_gives() -> None:
    """1 - (N-1)...(N-k) / (2N-1)...(2N-k), whatever the distribution (Naeem et al. 2020)."""
    n, k = 150, 5
    found = [Coverage(k).of(normal(n, 4, 2 * i), normal(n, 4, 2 * i + 1)) for i in range(40)]
    i = np.arange(1, k + 1)
    expected = 1 - np.prod((n - i) / (2 * n - i))
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(40))
    density = [Density(k).of(normal(n, 4, 2 * i), normal(n, 4, 2 * i + 1)) for i in range(40)]
    assert np.mean(density) == pytest.approx(1, abs=4 * np.std(density) / np.sqrt(40))


def test_a_lost_mode_costs_recall_and_coverage_and_an_invented_one_precision_and_density() -> None:
    two = np.concatenate([normal(200, 3, 0), normal(200, 3, 1, shift=30)])
    one = normal(400, 3, 2)
    assert Recall().of(one, two) < 0.52 < 0.9 < Precision().of(one, two)
    assert Coverage().of(one, two) < 0.52
    assert Precision().of(two, one) < 0.52 < 0.9 < Recall().of(two, one)
    assert Density().of(two, one) < 0.6


def test_memorisation_counts_pairs() -> None:
    train = np.array([[0.0], [10.0]])
    unseen = np.array([[1.0], [13.0]])  # 1 and 3 away
    assert Memorisation().of(np.array([[0.5], [12.0], [4.5]]), train, unseen) == 3 / 6
    assert Memorisation().of(train, train, unseen) == 1.0
    assert Memorisation().of(np.array([[99.0]]), train, unseen) == 0.0
    assert Memorisation().of(unseen, train, unseen) == 0.5  # ties are halves


def test_copies_are_noticed_and_fresh_draws_are_not() -> None:
    train, unseen, fresh = normal(500, 5, 0), normal(400, 5, 1), normal(400, 5, 2)
    copies = np.concatenate([fresh[:200], train[:200] + normal(200, 5, 3, scale=1e-3)])
    memorisation, authenticity = Memorisation(), Authenticity()
    assert memorisation.of(fresh, train, unseen) == pytest.approx(0.5, abs=0.06)
    assert memorisation.of(copies, train, unseen) == pytest.approx(0.75, abs=0.06)
    assert authenticity.of(copies, train) == pytest.approx(
        authenticity.of(fresh[:200], train) / 2, abs=0.01
    )
    assert authenticity.of(train, train) == 0.0


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("d", [3, 64])
def test_a_copy_is_one_whatever_else_is_there(d: int, rounding: float) -> None:
    """Also of a training image that is there twice, and but for the rounding of a network."""
    once = 10 + normal(200, d, 0)
    twice = np.concatenate([once, once * (1 + rounding)])
    copies = once[:50] * (1 + rounding * normal(50, d, 1))
    fresh = 10 + normal(50, d, 2)
    assert Authenticity().of(copies, twice) == 0.0
    assert Authenticity().of(fresh, twice) == 1.0
    assert Authenticity().of(np.concatenate([copies, fresh]), twice) == 0.5


def test_a_sample_as_near_as_a_training_image_is_no_authentic_one() -> None:
    """The inequality of Alaa et al. is strict."""
    train = np.array([[0.0], [2.0], [7.0]])
    assert Authenticity().of(np.array([[-2.0], [9.5], [12.0], [12.5]]), train) == 0.25


# ------------------------------------------------------------------------------------ infinite N


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATA["digits"].load()


class Known(Reference):
    """A reference whose Gaussian is known exactly."""

    def __init__(self, d: int) -> None:
        self.d = d

    def stats(self, x: object) -> GaussianStats:
        return GaussianStats.from_features(x, "e", "p")  # type: ignore[arg-type]

    @property
    def moments(self) -> GaussianStats:  # type: ignore[override]
        return GaussianStats(None, np.zeros(self.d), np.eye(self.d), "e", "p")


def test_the_limit_is_nearer_to_the_truth_than_any_finite_number() -> None:
    """N(0, 1.21 I) to N(0, I): d^2 = D (1.1 - 1)^2."""
    d, n, reference = 20, 1000, Known(20)
    exact = d * 0.1**2
    finite, limits = [], []
    for seed in range(12):
        x = normal(n, d, seed, scale=1.1)
        sizes, values = bias_curve(x, reference)
        assert (sizes[0], sizes[-1], len(sizes)) == (100, n, 15)
        finite.append(values[-1])
        limits.append(at_infinity(sizes, values)[0])
        assert FDInf().measure(x, reference).value == limits[-1]
    error = np.std(limits, ddof=1) / np.sqrt(12)
    assert np.mean(finite) - exact > 5 * error  # biased upwards
    assert abs(np.mean(limits) - exact) < 4 * error
    assert abs(np.mean(limits) - exact) < 0.3 * (np.mean(finite) - exact)


def test_a_line_over_one_by_n() -> None:
    sizes = np.array([10.0, 20, 50])
    assert at_infinity(sizes, 3 + 7 / sizes) == pytest.approx((3, 7))
    with pytest.raises(UserError, match="at least 100 samples in 20 dimensions, got 99"):
        bias_curve(normal(99, 20, 0), Known(20))


# ------------------------------------------------------------------------------------ on digits


EVERYTHING = Evaluation(
    metrics=["fd", "kid", "precision", "recall", "density", "coverage", "memorisation"],
    extractor={"name": "random_conv"},
)


@pytest.fixture(scope="module")
def on_digits(
    digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, MetricInstance]:
    made = metric_instances(EVERYTHING, digits, tmp_path_factory.mktemp("cache"))
    return {m.metric.name: m for m in made}


def values(on_digits: dict[str, MetricInstance], x: torch.Tensor) -> dict[str, float]:
    return {name: measure.of_samples(x).value for name, measure in on_digits.items()}


def test_more_noise_and_more_blur_are_worse(
    digits: Dataset, on_digits: dict[str, MetricInstance]
) -> None:
    real = to_model(digits.test.x)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool2d(real, 3, 1, 1, count_include_pad=False)
    for worse in (
        [real + level * noise for level in (0, 0.3, 0.6, 1.2)],
        [(1 - share) * real + share * soft for share in (0, 0.4, 0.7, 1)],
    ):
        found = [values(on_digits, to_uint8(x)) for x in worse]
        for name in ("FD", "KID"):
            assert all(a[name] < b[name] for a, b in pairwise(found)), (name, found)
        for name in ("precision", "coverage", "density", "memorisation"):
            assert all(a[name] >= b[name] for a, b in pairwise(found)), (name, found)
            assert found[0][name] > 1.3 * found[-1][name]
        assert {n: m.floor for n, m in on_digits.items()} == pytest.approx(found[0], rel=1e-5)


def test_a_dropped_class_is_worse_for_recall_and_not_for_precision(
    digits: Dataset, on_digits: dict[str, MetricInstance]
) -> None:
    assert digits.test.y is not None
    x = digits.test.x.clone()
    lost = torch.isin(digits.test.y, torch.tensor([1, 3, 8]))
    others = x[~lost]
    x[lost] = others[: int(lost.sum())]
    full, less = values(on_digits, digits.test.x), values(on_digits, x)
    assert less["FD"] > 1.5 * full["FD"]
    assert less["KID"] > 0.001 + full["KID"]
    assert less["recall"] < full["recall"] - 0.1
    assert less["coverage"] < full["coverage"] - 0.1
    assert less["precision"] > full["precision"] - 0.05


def test_training_images_are_known_as_such(
    digits: Dataset, on_digits: dict[str, MetricInstance]
) -> None:
    copies = values(on_digits, digits.train.x[:597])
    assert copies["memorisation"] > 0.99
    # ties are broken by rounding, on some processors: a pair is 1 / 597^2
    assert on_digits["memorisation"].floor == pytest.approx(0.5, abs=1e-5)
    assert on_digits["memorisation"].identity["reference_samples"] == 1200


def test_every_metric_has_a_floor_and_an_identity_of_its_own(
    digits: Dataset, tmp_path: Path
) -> None:
    asked = Evaluation(metrics=ALL, extractor=["raw", {"name": "pca", "dimension": 8}], samples=400)
    made = metric_instances(asked, digits, tmp_path)
    assert len({m.identity["id"] for m in made}) == len(made) == 2 * len(ALL)
    for measure in made:
        assert measure.floor is not None
        assert np.isfinite(measure.floor)
        assert json.loads(json.dumps(measure.identity)) == measure.identity
    other = metric_instances(
        Evaluation(metrics=[{"name": "kid", "degree": 2}], extractor="raw"), digits, tmp_path
    )
    assert other[0].identity["parameters"] == {"degree": 2, "gamma": 0.0, "coef": 1.0}


def test_names_and_references(digits: Dataset, tmp_path: Path) -> None:
    made = metric_instances(Evaluation(metrics=ALL, extractor="raw", samples=100), digits, tmp_path)
    told = {m.metric.name: m.identity for m in made}
    assert told["KID"]["label"] == "KID-digits-raw@100"
    assert told["FD"]["reference_samples"] == 1200
    assert told["precision"]["reference_samples"] == 100  # as many as there are samples
    assert told["precision"]["parameters"] == {"k": 3}
    assert told["coverage"]["parameters"] == {"k": 5}
    assert "parameters" not in told["FD"]
    against_test = Evaluation(metrics=["memorisation"], extractor="raw", reference="test")
    (measure,) = metric_instances(against_test, digits, tmp_path)
    assert measure.identity["reference"] == "train"  # of which copies would be
    assert measure.identity["label"] == "memorisation-digits-raw@597"


def test_a_label_tells_references_apart(digits: Dataset, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.npz" for name in ("one", "two")}
    for name, images in (("one", digits.test.x), ("two", digits.train.x)):
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        np.savez(files[name], arr_0=pixels.permute(0, 2, 3, 1).numpy())
    asked = [
        Evaluation(extractor="raw", samples=100),
        Evaluation(extractor="raw", samples=100, reference="test"),
        *(Evaluation(extractor="raw", samples=100, reference_file=str(f)) for f in files.values()),
    ]
    made = [metric_instances(one, digits, tmp_path)[0].identity for one in asked]
    hashes = [identity["reference_sha256"][:8] for identity in made]
    label = "FD-digits-raw@100"
    against = ("", "-vs-test", f"-vs-{hashes[2]}", f"-vs-{hashes[3]}")
    assert [identity["label"] for identity in made] == [label + suffix for suffix in against]
    assert hashes[2] != hashes[3]


def test_a_reference_of_images_and_statistics_is_read_as_adm_does(
    digits: Dataset, tmp_path: Path
) -> None:
    """Few images beside mu and sigma of the whole set: each metric takes what it is made for."""
    from fewstep.experiments.extractors import Features

    def features(is_fid: bool) -> Features:
        flat = Features("inception", "0" * 64, lambda x: x.flatten(1).double().numpy()[:, ::7])
        return replace(flat, is_fid=is_fid)

    x = digits.train.x
    whole = Reference(features(True), digits, tmp_path).moments
    pixels = x[:100].permute(0, 2, 3, 1).numpy()
    names = ("both", "images", "named", "other", "of another dimension")
    files = {name: tmp_path / f"{name}.npz" for name in names}
    statistics = {"mu": whole.mu, "sigma": whole.sigma}
    np.savez(files["both"], arr_0=pixels, **statistics)
    np.savez(files["images"], arr_0=pixels)
    np.savez(files["named"], arr_0=pixels, extractor=features(False).label, **statistics)
    np.savez(files["other"], arr_0=pixels, extractor="dinov2-0", **statistics)
    np.savez(files["of another dimension"], arr_0=pixels, mu=np.zeros(5), sigma=np.eye(5))

    def measured(metric: str, file: str | None, is_fid: bool = True) -> MetricInstance:
        of = None if file is None else files[file]
        reference = Reference(features(is_fid), digits, tmp_path, file=of)
        return MetricInstance(METRICS[metric], reference, 50, {})

    samples = digits.test.x[:50]
    fd = measured("fd", "both")
    assert fd.of_samples(samples).value == measured("fd", None).of_samples(samples).value
    assert fd.identity["reference_samples"] is None  # the file does not say
    few = measured("fd", "images")
    assert few.of_samples(samples).value != pytest.approx(fd.of_samples(samples).value, rel=0.01)
    assert few.identity["reference_samples"] == 100
    for file, is_fid, stored in (
        ("both", False, True),
        ("named", False, True),
        ("of another dimension", True, False),
        ("other", True, False),
    ):
        instance = measured("fd", file, is_fid)
        of = "mu and sigma" if stored else "of arr_0"
        assert instance.identity["reference_moments"] == of
        expected = fd if stored else few
        value = expected.of_samples(samples).value
        assert instance.of_samples(samples).value == pytest.approx(value, rel=1e-9)
    for metric in ("precision", "recall", "kid"):
        both, only = measured(metric, "both"), measured(metric, "images")
        assert both.of_samples(samples).value == only.of_samples(samples).value
        assert "reference_moments" not in both.identity


def test_a_metric_is_named_fid_with_the_published_inception_alone(digits: Dataset) -> None:
    from fewstep.experiments.extractors import Features

    for is_fid, label in ((True, "FID-digits@9"), (False, "FD-digits-inception@9")):
        features = Features("inception", "0" * 64, lambda x: np.zeros((len(x), 2)), is_fid=is_fid)
        reference = Reference(features, digits, Path("unused"))
        assert MetricInstance(METRICS["fd"], reference, 9, {}).identity["label"] == label
        kid = MetricInstance(METRICS["kid"], reference, 9, {}).identity
        assert kid["label"] == "KID-digits-inception@9"
    assert MetricInstance(METRICS["fd_inf"], reference, 9, {}).identity["name"] == "FDinf"


def test_statistics_that_could_be_of_two_extractors_are_refused(
    digits: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "both.npz"
    pixels = digits.test.x[:90].permute(0, 2, 3, 1).numpy()
    np.savez(file, arr_0=pixels, mu=np.zeros(64), sigma=np.eye(64))
    several = Evaluation(reference_file=str(file), extractor=["raw", "random_conv"], samples=50)
    with pytest.raises(
        UserError, match=r"of which extractor; .* are raw, random_conv: .*'raw-\w{12}' or 'random_"
    ):
        metric_instances(several, digits, tmp_path)
    precision = replace(several, metrics=["precision"])  # which takes the images
    assert len(metric_instances(precision, digits, tmp_path)) == 2
    metric_instances(replace(several, extractor="raw"), digits, tmp_path)
    np.savez(file, arr_0=pixels, mu=np.zeros(64), sigma=np.eye(64), extractor="raw")
    with pytest.raises(UserError, match="is of extractor 'raw', expected 'raw-"):
        _ = metric_instances(replace(several, extractor="raw"), digits, tmp_path)[0].identity
    for more, says in (
        ({"mu": np.zeros(64), "sigma": np.eye(64), "n": 1}, "n must be at least 2, got 1"),
        ({"arr_0": pixels[:1]}, "needs at least 2 images, got 1"),
    ):
        np.savez(file, **more)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=says):
            _ = metric_instances(replace(several, extractor="raw"), digits, tmp_path)[0].identity


def test_metrics_of_images_are_refused_before_training_where_there_are_statistics_alone(
    tmp_path: Path,
) -> None:
    np.savez(file := tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    given = (f"evaluation.reference_file={file}", "evaluation.metrics=[fd,precision]")
    with pytest.raises(UserError, match=r"evaluation.metrics precision: .* mu and sigma alone"):
        check([tiny(tmp_path, *given)])
    check([tiny(tmp_path, given[0])])


def test_a_reference_file_is_known_by_what_it_holds(digits: Dataset, tmp_path: Path) -> None:
    """Another file of the same name, or one whose statistics were not used before (fewstep 0.2)."""
    from fewstep.experiments.evaluation.evaluate import cells_lacking
    from fewstep.experiments.run import prepare, requested, run

    file = tmp_path / "reference.npz"
    pixels = digits.test.x[:90].permute(0, 2, 3, 1).numpy()
    np.savez(file, arr_0=pixels)
    settings = (
        "evaluation.samples=100",
        "evaluation.steps=[1]",
        f"evaluation.reference_file={file}",
    )
    directory = prepare(tiny(tmp_path, *settings, "evaluation.metrics=[fd,precision]"))
    run(directory)
    assert cells_lacking(requested(directory), directory) == 0
    np.savez(file, arr_0=pixels, mu=np.zeros(64), sigma=np.eye(64))
    assert cells_lacking(requested(directory), directory) == 1
    run(directory)
    assert cells_lacking(requested(directory), directory) == 0
    cells = directory.cells()
    assert len(cells) == 4
    [(name, fd)] = [(n, c) for n, c in cells.items() if "reference_moments" in c["metric"]]
    del fd["metric"]["reference_moments"]
    write_json(directory.cell_file(name), fd)  # as before mu and sigma were used
    assert cells_lacking(requested(directory), directory) == 1
    file.unlink()
    assert cells_lacking(requested(directory), directory) == 0  # what it was is all that is known


def test_a_cell_that_is_asked_for_in_other_words_is_not_lacking(tmp_path: Path) -> None:
    from fewstep.experiments.config.run_config import amend
    from fewstep.experiments.evaluation.evaluate import cells_lacking
    from fewstep.experiments.run import prepare, requested, run

    config = tiny(tmp_path, "evaluation.steps=[1]", "evaluation.samples=597")
    directory = prepare(config)
    run(directory)
    (name,) = directory.cells()
    for overrides in (
        [("evaluation.samples", None)],
        [("evaluation.extractor", {"name": "raw"})],
        ["evaluation.metrics=[{name: fd}]"],
    ):
        prepare(amend(config, overrides))
        run(directory)
        assert list(directory.cells()) == [name]
        assert cells_lacking(requested(directory), directory) == 0
    prepare(config)
    assert cells_lacking(requested(directory), directory) == 0


def test_files_that_an_extractor_names_are_known_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.experiments.evaluation.evaluate import cells_lacking
    from fewstep.experiments.extractors.base import content_sha256
    from fewstep.experiments.extractors.raw_pca import Raw
    from fewstep.experiments.run import prepare, requested, run

    weights = tmp_path / "weights"
    weights.write_text("1")
    monkeypatch.setattr(Raw, "content", lambda self: content_sha256([weights]), raising=False)
    directory = prepare(tiny(tmp_path, "evaluation.steps=[1]", "evaluation.samples=100"))
    run(directory)
    assert cells_lacking(requested(directory), directory) == 0
    weights.write_text("other")
    assert cells_lacking(requested(directory), directory) == 1
    run(directory)  # the hash of this extractor is the same: so are the cells
    assert cells_lacking(requested(directory), directory) == 0
    weights.unlink()
    assert cells_lacking(requested(directory), directory) == 0  # on a machine without them


def test_what_is_added_later_measures_the_same_samples(tmp_path: Path) -> None:
    from fewstep.experiments.config.run_config import amend
    from fewstep.experiments.evaluation.evaluate import cells_lacking
    from fewstep.experiments.run import prepare, requested, run

    few = ("evaluation.samples=100", "evaluation.steps=[1,2]")
    config = tiny(tmp_path, *few, "evaluation.metrics=[fd,kid]")
    directory = prepare(config)
    run(directory)
    before = {
        n: (directory.cell_file(n).stat().st_mtime_ns, c) for n, c in directory.cells().items()
    }
    assert [c["metric"]["name"] for _, c in before.values()].count("KID") == 2
    both = [c for _, c in before.values() if c["cell"]["steps"] == 2]
    assert both[0]["seconds"] == both[1]["seconds"]  # of one and the same drawing
    assert sum("error" in c for c in both) == 1
    more = amend(config, [*few, "evaluation.metrics=[recall,fd]", "evaluation.extractor=[raw,pca]"])
    prepare(more)
    assert cells_lacking(requested(directory), directory) == 2
    run(directory)
    after = directory.cells()
    assert len(after) == 4 + 2 * 3
    assert before == {n: (directory.cell_file(n).stat().st_mtime_ns, after[n]) for n in before}
    assert cells_lacking(requested(directory), directory) == 0
    alone = prepare(tiny(tmp_path / "b", *few, "evaluation.metrics=[recall]"))
    run(alone)
    told = {c["cell"]["steps"]: c["value"] for c in alone.cells().values()}
    later = [c for c in after.values() if c["metric"]["label"] == "recall-digits-raw@100"]
    assert {c["cell"]["steps"]: c["value"] for c in later} == told
    images = {n: np.load(directory.samples / f"{n}.npz")["images"] for n in after}
    for steps in (1, 2):
        shown = [images[n] for n, c in after.items() if c["cell"]["steps"] == steps]
        assert all(np.array_equal(shown[0], other) for other in shown[1:])


def test_extractors_have_their_own_references(digits: Dataset, tmp_path: Path) -> None:
    pca = EXTRACTORS["pca"].prepare(digits, tmp_path)
    first, second = (Reference(pca, digits, tmp_path, split) for split in ("train", "test"))
    assert first.moments.n == 1200
    assert second.moments.n == 597
    assert np.array_equal(first.rows(50), Reference(pca, digits, tmp_path).rows(50))
    assert len(np.unique(first.rows(50), axis=0)) == 50
    assert len(first.rows(5000)) == 1200
