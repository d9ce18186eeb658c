"""Extractors: trained once, the same bits everywhere, and sensitive to what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import times_changed

from fewstep.errors import UserError
from fewstep.experiments.data import DATA, Dataset, to_model, to_uint8
from fewstep.experiments.extractors import CNN, EXTRACTORS, Features
from fewstep.experiments.measure import main_measure
from fewstep.experiments.settings import Evaluation

QUICK = CNN(steps=30)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATA["digits"].load()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the extractor that runs use is trained once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_two_fresh_caches_give_the_same_network(digits: Dataset, tmp_path: Path) -> None:
    made: list[Features] = []
    for i, threads in enumerate((1, 2)):
        torch.set_num_threads(threads)
        torch.manual_seed(i)  # nothing outside of it matters
        made.append(QUICK.prepare(digits, tmp_path / str(i)))
        assert torch.get_num_threads() == threads  # and it leaves things as they were
    assert made[0].sha256 == made[1].sha256
    assert len(made[0].sha256) == 64
    x = digits.test.x[:50]
    np.testing.assert_allclose(made[0].extract(x), made[1].extract(x), rtol=1e-5, atol=1e-6)


def test_a_network_in_the_cache_is_not_trained_again(digits: Dataset, tmp_path: Path) -> None:
    first = QUICK.prepare(digits, tmp_path)
    before = {n: t for n, t in times_changed(tmp_path).items() if not n.endswith(".lock")}
    assert len(before) == 2  # weights, and what they are
    again = QUICK.prepare(digits, tmp_path)
    assert before.items() <= times_changed(tmp_path).items()
    assert again.sha256 == first.sha256
    x = digits.test.x
    assert np.array_equal(first.extract(x), again.extract(x))


def test_other_settings_or_data_are_another_network(digits: Dataset, tmp_path: Path) -> None:
    less = replace(digits, train=replace(digits.train, x=digits.train.x.clone().fill_(3)))
    hashes = {
        QUICK.prepare(digits, tmp_path).sha256,
        replace(QUICK, steps=31).prepare(digits, tmp_path).sha256,
        QUICK.prepare(less, tmp_path).sha256,
    }
    assert len(hashes) == 3


def test_features_do_not_depend_on_the_company(digits: Dataset, tmp_path: Path) -> None:
    features = QUICK.prepare(digits, tmp_path)
    whole = features.extract(digits.train.x)  # in batches of 500
    assert whole.shape == (1200, 64)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole[480:520], features.extract(digits.train.x[480:520]), atol=1e-5)


def test_vectors_are_nothing_for_a_cnn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs labelled images; gaussians .*choices here: raw"):
        EXTRACTORS["cnn"].prepare(DATA["gaussians"].load(), tmp_path)


def test_raw_is_the_values_themselves(digits: Dataset, tmp_path: Path) -> None:
    raw = EXTRACTORS["raw"].prepare(digits, tmp_path)
    x = digits.test.x
    assert np.array_equal(raw.extract(x), to_model(x).flatten(1).double().numpy())
    vectors = DATA["gaussians"].load()
    assert np.array_equal(raw.extract(vectors.test.x), vectors.test.x.double().numpy())


def test_auto_takes_the_cnn_for_images_and_raw_for_vectors(digits: Dataset, cache: Path) -> None:
    assert main_measure(Evaluation(), digits, cache).identity["label"] == "FD-digits-cnn@597"
    vectors = main_measure(Evaluation(), DATA["gaussians"].load(), cache).identity
    assert vectors["label"] == "FD-gaussians-raw@2048"
    assert vectors["rounding"] == "none"


def test_the_network_of_the_digits_knows_them(digits: Dataset, cache: Path) -> None:
    EXTRACTORS["cnn"].prepare(digits, cache)
    (told,) = (cache / "extractors").glob("digits-cnn-*.json")
    assert json.loads(told.read_text())["test_accuracy"] > 0.95


def test_more_noise_is_a_greater_distance(digits: Dataset, cache: Path) -> None:
    metric = main_measure(Evaluation(), digits, cache)
    noise = torch.randn(digits.test.x.shape, generator=torch.Generator().manual_seed(0))
    values = [
        metric.of_samples(to_uint8(to_model(digits.test.x) + level * noise)).value
        for level in (0, 0.1, 0.2, 0.4, 0.8)
    ]
    assert metric.floor == pytest.approx(values[0])
    assert values == sorted(values)
    assert values[1] > 1.02 * values[0]
    assert values[-1] > 5 * values[0]


def test_a_missing_class_is_a_greater_distance(digits: Dataset, cache: Path) -> None:
    """What a network that has collapsed would do."""
    metric = main_measure(Evaluation(), digits, cache)
    assert digits.test.y is not None
    x = digits.test.x.clone()
    x[digits.test.y == 3] = x[digits.test.y == 8][0]
    assert metric.floor is not None
    assert metric.of_samples(x).value > 1.5 * metric.floor
