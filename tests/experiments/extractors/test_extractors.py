"""Extractors: trained once, the same bits everywhere, and sensitive to what is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import times_changed

from fewstep.errors import UserError
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.data import DATA, Dataset, to_model, to_uint8
from fewstep.experiments.evaluation.measurement import main_metric, metric_instances
from fewstep.experiments.extractors import CNN, EXTRACTORS, PCA, DINOv2, Features, RandomConv
from fewstep.experiments.metrics.reference import Reference

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
    assert main_metric(Evaluation(), digits, cache).identity["label"] == "FD-digits-cnn@597"
    vectors = main_metric(Evaluation(), DATA["gaussians"].load(), cache).identity
    assert vectors["label"] == "FD-gaussians-raw@2048"
    assert vectors["rounding"] == "none"


def test_the_network_of_the_digits_knows_them(digits: Dataset, cache: Path) -> None:
    EXTRACTORS["cnn"].prepare(digits, cache)
    (told,) = (cache / "extractors").glob("digits-cnn-*.json")
    assert json.loads(told.read_text())["test_accuracy"] > 0.95


def test_more_noise_is_a_greater_distance(digits: Dataset, cache: Path) -> None:
    metric = main_metric(Evaluation(), digits, cache)
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
    metric = main_metric(Evaluation(), digits, cache)
    assert digits.test.y is not None
    x = digits.test.x.clone()
    x[digits.test.y == 3] = x[digits.test.y == 8][0]
    assert metric.floor is not None
    assert metric.of_samples(x).value > 1.5 * metric.floor


# ------------------------------------------------------------------- without training, or from afar


def test_principal_components_are_the_training_splits(digits: Dataset, tmp_path: Path) -> None:
    pca = PCA(5).prepare(digits, tmp_path)
    assert pca.name == "pca5"
    found = pca.extract(digits.train.x)
    x = to_model(digits.train.x).flatten(1).double().numpy()
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)[:5]
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found.T @ found, np.diag(singular**2), atol=1e-8 * singular[0] ** 2)
    again = PCA(5).prepare(digits, tmp_path)  # read from the cache
    assert np.array_equal(again.extract(digits.test.x), pca.extract(digits.test.x))
    assert len({pca.sha256, PCA(6).prepare(digits, tmp_path).sha256}) == 2
    with pytest.raises(UserError, match="64 values, too few for dimension 65"):
        PCA(65).prepare(digits, tmp_path)
    vectors = DATA["gaussians"].load()
    assert PCA(2).prepare(vectors, tmp_path).extract(vectors.test.x).shape == (2048, 2)


def test_random_convolutions_are_the_same_everywhere(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = RandomConv().prepare(digits, tmp_path)
    torch.manual_seed(2)
    two = RandomConv().prepare(digits, tmp_path / "other")
    assert one.sha256 == two.sha256 != RandomConv(seed=1).prepare(digits, tmp_path).sha256
    found = one.extract(digits.test.x)
    assert np.array_equal(found, two.extract(digits.test.x))
    assert found.shape == (597, 64)
    assert np.linalg.matrix_rank(np.cov(found, rowvar=False)) == 64  # no feature is idle
    with pytest.raises(UserError, match="random_conv needs images"):
        RandomConv().prepare(DATA["gaussians"].load(), tmp_path)


def test_dinov2_from_a_local_folder(digits: Dataset, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    made = DINOv2(str(tmp_path / "dino"), size=28)
    features = made.prepare(digits, tmp_path)
    found = features.extract(digits.test.x[:5])
    x = torch.nn.functional.interpolate(
        digits.test.x[:5].expand(-1, 3, -1, -1) / 255, (28, 28), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    x = (x - mean) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(x).last_hidden_state[:, 0]
    np.testing.assert_allclose(found, expected.double().numpy(), atol=1e-5)
    right = hashlib.sha256((tmp_path / "dino" / "model.safetensors").read_bytes()).hexdigest()
    assert replace(made, sha256=right).prepare(digits, tmp_path).sha256 == features.sha256
    with pytest.raises(UserError, match=f"has sha256 {right}, expected 00"):
        replace(made, sha256="00").prepare(digits, tmp_path)
    with pytest.raises(UserError, match=r"no file config\.json in nowhere; nothing is downloaded"):
        DINOv2("nowhere").check(digits)


# ------------------------------------------------------------------------------ reference files


def test_a_file_of_statistics_is_the_split_it_was_made_of(digits: Dataset, tmp_path: Path) -> None:
    raw = EXTRACTORS["raw"].prepare(digits, tmp_path)
    file = tmp_path / "digits.npz"
    Reference(raw, digits, tmp_path).moments.write(file)
    asked = Evaluation(extractor="raw", reference_file=str(file))
    measure = main_metric(asked, digits, tmp_path)
    x = digits.test.x
    usual = main_metric(Evaluation(extractor="raw"), digits, tmp_path)
    assert measure.of_samples(x).value == usual.of_samples(x).value
    assert measure.floor == usual.floor
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    told = {"reference": "file", "reference_sha256": sha256, "reference_samples": 1200}
    assert told.items() <= measure.identity.items()
    assert measure.identity["id"] != usual.identity["id"]
    with pytest.raises(UserError, match=r"digits\.npz holds mu and sigma alone"):
        metric_instances(replace(asked, metrics=["kid"]), digits, tmp_path)[0].of_samples(x)
    eight = replace(asked, extractor={"name": "pca", "dimension": 8})
    with pytest.raises(UserError, match=r"is of extractor 'raw-.*expected 'pca8-"):
        main_metric(eight, digits, tmp_path).of_samples(x)


def test_files_of_other_codes(digits: Dataset, tmp_path: Path) -> None:
    flat = to_model(digits.train.x).flatten(1).double().numpy()
    file = tmp_path / "foreign.npz"
    np.savez(file, mu=flat.mean(0), sigma=np.cov(flat, rowvar=False))
    asked = Evaluation(extractor="raw", reference_file=str(file))
    usual = main_metric(Evaluation(extractor="raw"), digits, tmp_path)
    x = digits.test.x
    value = main_metric(asked, digits, tmp_path).of_samples(x).value
    assert value == pytest.approx(usual.of_samples(x).value, rel=1e-9)
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"foreign\.npz is of 2048 dim.*features of raw have 64"):
        main_metric(asked, digits, tmp_path).of_samples(x)
    # ADM's batches: images, with the channels last; statistics of Inception's may lie beside them
    np.savez(file, arr_0=digits.train.x.permute(0, 2, 3, 1).numpy(), mu=np.zeros(2048))
    batch = metric_instances(replace(asked, metrics=["fd", "recall"]), digits, tmp_path)
    assert batch[0].of_samples(x).value == usual.of_samples(x).value
    assert batch[1].identity["reference_samples"] == 597
    recall = metric_instances(Evaluation(metrics=["recall"], extractor="raw"), digits, tmp_path)[0]
    assert batch[1].of_samples(x).value == recall.of_samples(x).value
    np.savez(file, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"of shape \(3, 8, 8\), those of digits have \(1, 8, 8\)"):
        main_metric(asked, digits, tmp_path).of_samples(x)
    np.savez(file, arr_0=np.zeros((3, 8, 8, 1)))
    with pytest.raises(UserError, match=r"arr_0 is float64 .*expected uint8 images \(N, H, W, C\)"):
        main_metric(asked, digits, tmp_path).of_samples(x)
