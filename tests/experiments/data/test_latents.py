"""Images through a small autoencoder of ``diffusers`` into a folder of latents, and from it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import flat, registered, tiny, train, trainer
from safetensors.numpy import load_file, save_file

from fewstep.errors import UserError
from fewstep.experiments.autoencoders.encode import Settings, encode
from fewstep.experiments.config.protocols import seen_by
from fewstep.experiments.config.run_config import Override
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.data import (
    DATA,
    Dataset,
    DataShape,
    Rows,
    Split,
    like,
    shape_of,
    to_model,
    to_uint8,
)
from fewstep.experiments.data.latents import Latents
from fewstep.experiments.evaluation.measurement import MetricInstance, metric_instances
from fewstep.experiments.extractors import EXTRACTORS
from fewstep.experiments.metrics.frechet_distance import GaussianStats, frechet_distance
from fewstep.experiments.metrics.reference import Reference
from fewstep.experiments.run import prepare, run
from fewstep.registry import build_named

pytestmark = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="no diffusers: pip install 'fewstep[latents]'"
)
from fewstep.experiments.autoencoders import Autoencoder, Diffusers  # noqa: E402

CPU = torch.device("cpu")
SHIFT = 0.25


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved autoencoder: halves the sides, 4 channels, untrained."""
    torch.manual_seed(0)
    import diffusers  # takes seconds

    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=SHIFT,
    )
    place = tmp_path_factory.mktemp("autoencoder")
    network.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def autoencoder(folder: Path) -> Autoencoder:
    return Autoencoder(Diffusers(str(folder)), CPU)


def images(channels: int = 3, labels: bool = True) -> Dataset:
    def split(n: int, seed: int) -> Split:
        g = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 256, (n, channels, 8, 8), generator=g, dtype=torch.uint8)
        return Split(x, torch.arange(n) % 3 if labels else None)

    return Dataset("noise", split(11, 0), split(4, 1), 3 if labels else 0)


SMALL = Settings(batch_size=2, shard=5)


@pytest.fixture(scope="session")
def encoded(autoencoder: Autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("encoded") / "latents"
    assert encode(images(), {"name": "noise"}, autoencoder, output, SMALL)
    return output


@pytest.fixture
def copied(encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(encoded, tmp_path / "latents"))


def load(place: Path, **settings: Any) -> Dataset:
    return Latents(root=str(place.parent), folder=place.name, **settings).load()


# ---------------------------------------------------------------------------------- what is made


def test_latents_are_the_posteriors_own_scaled(folder: Path, copied: Path) -> None:
    data, source = load(copied), images()
    assert (data.name, data.shape, data.num_classes) == ("latents", (4, 4, 4), 3)
    assert not data.is_image
    assert (len(data.train), len(data.test)) == (11, 4)
    import diffusers  # takes seconds

    network = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        posterior = network.encode(source.train.x.float() / 127.5 - 1).latent_dist
    scale = network.config.scaling_factor
    torch.testing.assert_close(data.train.x, (posterior.mean - SHIFT) * scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.std, posterior.std * scale, atol=1e-5, rtol=0)
    assert torch.equal(data.train.y, source.train.y)
    assert torch.equal(data.test.y, source.test.y)


def test_what_is_expected_tells_the_shape_of_a_folder_that_is_not_there(copied: Path) -> None:
    data = load(copied)
    absent = shape_of(Latents(root="nowhere", expected="4x4x4 classes=3 train=9 test=9"))
    assert absent == DataShape(data.shape, data.num_classes, 0, data.is_image)
    assert like(absent, 5).shape == data.shape
    with pytest.raises(UserError, match="no latents in"):  # the settings do not tell
        shape_of(Latents(root="nowhere"))


def test_latents_have_the_name_that_was_given(copied: Path, tmp_path: Path) -> None:
    """Not that of what a link leads to: a new version would have another."""
    (tmp_path / "given").symlink_to(copied)
    assert load(tmp_path / "given").name == "given"


def test_decoding_undoes_the_scaling(autoencoder: Autoencoder, folder: Path) -> None:
    x = images().test.x
    mean, _ = autoencoder.encode(x)
    import diffusers  # takes seconds

    network = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        due = network.decode(network.encode(to_model(x)).latent_dist.mean).sample
    assert (autoencoder.decode(mean).int() - to_uint8(due).int()).abs().max() <= 1


def test_the_manifest_says_what_it_is_made_of(encoded: Path, autoencoder: Autoencoder) -> None:
    manifest = json.loads((encoded / "manifest.json").read_text())
    assert manifest["source"]["train_sha256"] == images().train.sha256
    assert manifest["source"]["data"] == {"name": "noise"}
    assert manifest["autoencoder"]["sha256"] == autoencoder.sha256
    assert manifest["autoencoder"]["scaling_factor"] == 0.18215
    counts = [shard["count"] for shard in manifest["splits"]["train"]["shards"]]
    assert counts == [5, 5, 1]
    assert not (encoded / "partial.json").exists()


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("batches", [1, 4, 6])
def test_an_interrupted_encoding_ends_with_the_same_bytes(
    encoded: Path, autoencoder: Autoencoder, tmp_path: Path, batches: int
) -> None:
    asked = iter(range(100))
    made: list[int] = []

    def again(stop: Callable[[], bool]) -> bool:
        told = lambda split, done, total, rate: made.append(done)  # noqa: E731
        return encode(images(), {"name": "noise"}, autoencoder, tmp_path / "o", SMALL, stop, told)

    assert not again(lambda: next(asked) == batches)
    assert not (tmp_path / "o" / "manifest.json").exists()
    before = len(made)
    assert again(lambda: False)
    assert len(made) - before == 9 - 3 * (batches // 3)  # three batches a shard, whole ones stay
    assert content(tmp_path / "o") == content(encoded)
    total = len(made)
    assert again(lambda: False)
    assert len(made) == total  # nothing to do


def test_a_shard_that_was_torn_is_made_again(
    encoded: Path, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    asked = iter(range(100))
    output = tmp_path / "o"
    encode(images(), {"name": "noise"}, autoencoder, output, SMALL, lambda: next(asked) == 7)
    (output / "train-00001.safetensors").write_bytes(b"torn")
    assert encode(images(), {"name": "noise"}, autoencoder, output, SMALL)
    assert content(output) == content(encoded)


def test_half_precision(autoencoder: Autoencoder, copied: Path, tmp_path: Path) -> None:
    output = tmp_path / "half"
    encode(images(labels=False), {}, autoencoder, output, Settings("float16", 2, 5))
    half, whole = load(output), load(copied)
    assert half.train.x.dtype == torch.float16
    assert (half.num_classes, half.train.y) == (0, None)
    torch.testing.assert_close(half.train.x.float(), whole.train.x, atol=1e-3, rtol=1e-3)
    assert to_model(half.train.x).dtype == torch.float32


def test_condition_vectors_are_kept(
    autoencoder: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    labelled = images()
    splits = [
        Split(s.x, torch.randn(len(s), 3, generator=torch.Generator().manual_seed(i)))
        for i, s in enumerate((labelled.train, labelled.test))
    ]
    source = Dataset("noise", *splits, 0)
    assert encode(source, {"name": "noise"}, autoencoder, tmp_path / "latents", SMALL)
    data = load(tmp_path / "latents")
    assert (data.num_classes, data.condition_dim) == (0, 3)
    for kept, given in ((data.train, source.train), (data.test, source.test)):
        assert torch.equal(kept.y, given.y)
        assert kept.sha256 == replace(kept, stored_sha256=None).sha256


def test_grey_images_are_taken_three_times(autoencoder: Autoencoder) -> None:
    x = images(channels=1).test.x
    mean, std = autoencoder.encode(x)
    same, spread = autoencoder.encode(x.repeat(1, 3, 1, 1))
    assert torch.equal(mean, same)
    assert torch.equal(std, spread)


def test_another_folder_is_not_touched(
    encoded: Path, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else than latents"):
        encode(images(), {}, autoencoder, tmp_path, SMALL)
    other = Dataset("noise", images().test, images().train, 3)
    for data, settings, says in (
        (other, SMALL, "source.train_sha256 is"),
        (images(), Settings("float16", 2, 5), "dtype is 'float32', expected 'float16'"),
        (images(), Settings("float32", 2, 4), "shard is 5, expected 4"),
    ):
        with pytest.raises(UserError, match=f"is of other latents: {says}"):
            encode(data, {"name": "noise"}, autoencoder, encoded, settings)


def test_images_that_it_does_not_take(autoencoder: Autoencoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gaussians is not made of images"):
        encode(DATA["gaussians"].load(), {}, autoencoder, tmp_path / "o", SMALL)
    with pytest.raises(UserError, match="takes 3 channels, got 4"):
        autoencoder.shape_of((4, 8, 8))
    with pytest.raises(UserError, match="images of 9x8 are not divisible by 2"):
        autoencoder.shape_of((3, 9, 8))


def test_loading_one_gives_no_advice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """diffusers has four lines of it, about memory, where accelerate is not installed."""
    logger = logging.getLogger("diffusers")  # which passes nothing on
    logger.addHandler(caplog.handler)
    try:
        Autoencoder(Diffusers(str(folder)), CPU)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/sd-vae", "empty"])
def test_autoencoders_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"autoencoder '{name}' cannot be loaded") as caught:
        Autoencoder(Diffusers(name), CPU)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- what is refused


def rewrite(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    change(manifest)
    (place / "manifest.json").write_text(json.dumps(manifest))


def signed(place: Path, name: str, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change a shard, and have the manifest agree."""
    import hashlib

    arrays = load_file(place / name)
    change(arrays)
    save_file(arrays, place / name)
    digest = hashlib.sha256((place / name).read_bytes()).hexdigest()

    def sign(manifest: dict[str, Any]) -> None:
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                if shard["file"] == name:
                    shard["sha256"] = digest

    rewrite(place, sign)


SHARD = "train-00001.safetensors"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-1]),
        f"{SHARD} is not the shard of its manifest",
    ),
    "html": (lambda p: (p / SHARD).write_bytes(b"<html>"), f"{SHARD} is not the shard"),
    "mixed up": (
        lambda p: shutil.copy(p / "train-00000.safetensors", p / SHARD),
        f"{SHARD} is not the shard",
    ),
    "missing": (lambda p: (p / SHARD).unlink(), f"{SHARD} is missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json"),
    "torn manifest": (lambda p: (p / "manifest.json").write_text("{"), "is not valid JSON"),
    "empty manifest": (lambda p: (p / "manifest.json").write_text("{}"), "no 'format'"),
    "format": (lambda p: rewrite(p, lambda m: m.update(format=9)), "format 9, expected 1"),
    "dtype": (lambda p: rewrite(p, lambda m: m.update(dtype="int8")), "dtype 'int8' .choices"),
    "count": (
        lambda p: rewrite(p, lambda m: m["splits"]["train"].update(count=12)),
        "train of 12, its shards hold 11",
    ),
    "shape": (
        lambda p: rewrite(p, lambda m: m.update(shape=[4, 4, 5])),
        r"train-00000.safetensors holds .*float32 \[5, 4, 4, 4\].* expected .*5, 4, 4, 5",
    ),
    "names": (
        lambda p: signed(p, SHARD, lambda a: a.update(z=a.pop("std"))),
        f"{SHARD} holds .*expected .*std",
    ),
    "not finite": (
        lambda p: signed(p, SHARD, lambda a: a["mean"].fill(np.nan)),
        f"{SHARD} holds numbers that are not finite",
    ),
    "labels": (lambda p: signed(p, SHARD, lambda a: a["y"].fill(3)), r"0\.\.3, expected 0\.\.2"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_latents_are_refused_by_name(copied: Path, kind: str) -> None:
    damage, says = DAMAGED[kind]
    damage(copied)
    with pytest.raises(UserError, match=says) as caught:
        load(copied)
    assert "latents" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- training on them


def test_the_posterior_is_drawn_anew_each_step_and_again_the_same(copied: Path) -> None:
    with registered("data", "own", Latents(root=str(copied.parent))):
        settings = ("data=own", "backbone=dit_digits", "backbone.patch=2")
        made = trainer(tiny(copied.parent, *settings))
        rows = made.dataset.train.rows(torch.arange(6))
        first, again, next_ = (made._batch(rows, "train", i).x for i in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, next_)
        draws = torch.stack([made._batch(rows, "train", i).x for i in range(400)])
        error = (draws.mean(0) - rows.x) / rows.std * 20  # in standard errors
        assert error.square().mean() == pytest.approx(1, abs=0.2)
        assert ((draws.var(0) / rows.std.square()).mean()) == pytest.approx(1, abs=0.02)
        plain = made._batch(Rows(rows.x), "train", 0)
        assert torch.equal(plain.x, rows.x)


def test_the_mean_alone(copied: Path) -> None:
    drawn, mean = load(copied), load(copied, posterior="mean")
    assert mean.train.std is None
    assert torch.equal(mean.train.x, drawn.train.x)
    assert mean.train.sha256 == drawn.train.sha256  # what samples are compared with is the same


@pytest.mark.filterwarnings("ignore::fewstep.experiments.metrics.frechet_distance.FrechetWarning")
def test_a_run_is_trained_and_judged_by_its_raw_latents(copied: Path) -> None:
    with registered("data", "own", Latents(root=str(copied.parent))):
        settings = ("data=own", "backbone=dit_digits", "backbone.patch=2", "training.steps=3")
        one = train(tiny(copied.parent / "a", *settings))
        two = train(tiny(copied.parent / "b", *settings))
        assert torch.equal(flat(one.net), flat(two.net))
        [metric] = metric_instances(Evaluation(samples=4), one.dataset, copied.parent / "cache")
        assert metric.identity["label"] == "FD-latents-raw@4"
        assert metric.identity["rounding"] == "none"
        assert metric.identity["reference_sha256"] == one.dataset.train.sha256
        shifted = one.dataset.test.x + 1  # every mean moves by 1: |mu - mu'|^2 grows by D + ...
        near = metric.of_samples(one.dataset.test.x).value
        assert metric.of_samples(shifted).value > near + 10


def decoded(folder: Path, extractor: object = "random_conv") -> dict[str, object]:
    return {"name": "decoded", "autoencoder": str(folder), "extractor": extractor}


SINGULAR = "ignore::fewstep.experiments.metrics.frechet_distance.FrechetWarning"


@pytest.mark.filterwarnings(SINGULAR)
def test_latents_are_judged_by_the_images_they_stand_for(
    folder: Path, autoencoder: Autoencoder, copied: Path
) -> None:
    data, cache = load(copied), copied.parent / "cache"
    samples = torch.randn(6, *data.shape, generator=torch.Generator().manual_seed(0))
    [metric] = metric_instances(Evaluation(samples=6, extractor=decoded(folder)), data, cache)
    stub = Split(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    images = EXTRACTORS["random_conv"].prepare(Dataset("images", stub, stub, 0), cache)
    stats = [
        GaussianStats.from_features(images.extract(autoencoder.decode(x)), "a", "b")
        for x in (samples, data.train.x)
    ]
    assert metric.of_samples(samples).value == pytest.approx(frechet_distance(*stats), rel=1e-5)
    assert metric.identity["label"] == "FD-latents-decoded-random_conv@6"
    assert metric.identity["rounding"] == "clip-round-uint8"
    [raw] = metric_instances(Evaluation(samples=6), data, cache)
    assert raw.identity["rounding"] == "none"
    assert raw.identity["id"] != metric.identity["id"]


def test_decoded_pixels_are_rounded_as_a_protocol_does(
    folder: Path, autoencoder: Autoencoder, copied: Path
) -> None:
    data, cache = load(copied), copied.parent / "cache"
    x = torch.randn(6, *data.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = x / autoencoder.scale + autoencoder.shift
        levels = (autoencoder.network.decode(z).clamp(-1, 1) + 1) * 127.5
    asked = seen_by("adm", decoded(folder, "inception"))
    assert asked["extractor"] == {"name": "inception", "resize": "tf1"}
    made = [
        build_named(EXTRACTORS, "extractor", {**decoded(folder), "rounding": rounding})
        for rounding in (asked["rounding"], "nearest")
    ]
    below, nearest = (extractor.prepare(data, cache) for extractor in made)
    assert below.decode is not None
    assert nearest.decode is not None
    apart = levels - below.decode(x)
    assert -1e-3 < apart.min() < 0.1 < 0.9 < apart.max() < 1 + 1e-3
    assert (levels - nearest.decode(x)).abs().max() < 0.5 + 1e-3
    assert below.sha256 != nearest.sha256


@pytest.mark.filterwarnings(SINGULAR)
def test_decoded_samples_stand_beside_real_images(folder: Path, copied: Path) -> None:
    """Of a batch of images, or of their moments as ``fewstep reference`` writes them."""
    data, cache = load(copied), copied.parent / "cache"
    real = images().train.x
    batch, moments = copied.parent / "batch.npz", copied.parent / "moments.npz"
    np.savez(batch, arr_0=real.permute(0, 2, 3, 1).numpy())
    of = EXTRACTORS["random_conv"].prepare(images(), cache)
    stats = GaussianStats.from_features(of.extract(real), of.label, "clip-round-uint8")
    stats.write(moments)
    values = []
    for file in (batch, moments):
        asked = Evaluation(samples=4, extractor=decoded(folder), reference_file=str(file))
        [metric] = metric_instances(asked, data, cache)
        values.append(metric.of_samples(data.test.x).value)
        assert metric.of_samples(real[:4]).value < values[-1]  # real images, taken as they are
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    # only beside real images may it be called FID
    published = replace(metric.reference.features, is_fid=True)
    for file, label in ((None, f"FD-{data.name}-decoded-random_conv@4"), (batch, "FID-{}@4")):
        reference = Reference(published, data, cache, file=file)
        told = MetricInstance(metric.metric, reference, 4, {}).identity["label"]
        assert told.partition("-vs-")[0] == label.format(data.name)
    np.savez(batch, arr_0=real.permute(0, 2, 3, 1).numpy()[:, :4])
    with pytest.raises(UserError, match=r"images of shape \(3, 4, 8\).* have \(3, 8, 8\)"):
        metric_instances(replace(asked, reference_file=str(batch)), data, cache)[0].of_samples(
            real[:4]
        )


@pytest.mark.filterwarnings(SINGULAR)
def test_the_samples_of_a_run_are_shown_decoded(folder: Path, copied: Path) -> None:
    with registered("data", "own", Latents(root=str(copied.parent))):
        settings = ("data=own", "backbone=dit_digits", "training.steps=2", "evaluation.steps=[1]")
        asked: list[Override] = [("evaluation.extractor", ["raw", decoded(folder)])]
        directory = prepare(tiny(copied.parent / "a", *settings, *asked))
        run(directory)
    labels = {record["metric"]["label"] for record in directory.cells().values()}
    assert labels == {"FD-latents-raw@4", "FD-latents-decoded-random_conv@4"}
    for file in directory.samples.glob("*.npz"):
        with np.load(file) as held:
            assert (held["images"].dtype, held["images"].shape) == (np.uint8, (4, 3, 8, 8))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"extractor": "cnn"}, "'cnn' does not work on decoded images"),
        ({"extractor": {"name": "pca", "dimension": 2}}, "does not work on decoded images"),
        ({"extractor": "incepton"}, "unknown evaluation.extractor.extractor 'incepton'"),
        ({"autoencoder": ""}, "needs the latents' autoencoder"),
        ({"autoencoder": "nowhere/at/all"}, "autoencoder 'nowhere/at/all' cannot be loaded"),
        ({"batch_size": 0}, "extractor.batch_size"),
    ],
)
def test_what_cannot_be_decoded(
    folder: Path, copied: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        metric_instances(
            Evaluation(extractor=decoded(folder) | change), load(copied), copied / "cache"
        )


def test_only_latents_are_decoded_and_only_by_their_autoencoder(folder: Path, copied: Path) -> None:
    with pytest.raises(UserError, match=r"decoded needs latents; noise has torch.uint8 of shape"):
        metric_instances(Evaluation(extractor=decoded(folder)), images(), copied / "cache")
    three = Split(torch.zeros(5, 3, 4, 4))
    other = Dataset("others", three, three, 0)
    with pytest.raises(UserError, match="has latents of 4 channels, got 3"):
        metric_instances(Evaluation(extractor=decoded(folder)), other, copied / "cache")


def test_an_unknown_posterior() -> None:
    with pytest.raises(UserError, match=r"unknown data.posterior 'mode'"):
        Latents(posterior="mode")
