"""Autoencoders: three of diffusers, untrained, and TAEF2 with its real weights."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.real_data import real_data
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from fewstep.analysis import load, summarise
from fewstep.cli.app import app
from fewstep.errors import UserError
from fewstep.experiments.autoencoders import AUTOENCODERS, Autoencoder, Diffusers, entry_of
from fewstep.experiments.autoencoders.encode import Settings, encode
from fewstep.experiments.data import Dataset, Split, to_model, to_uint8
from fewstep.experiments.data.cifar import CIFAR10
from fewstep.experiments.data.latents import Latents
from fewstep.experiments.evaluation.measurement import main_metric
from fewstep.experiments.metrics.frechet_distance import GaussianStats, frechet_distance
from fewstep.experiments.run import run
from fewstep.experiments.store.json_files import read_json
from fewstep.reports.tables import quality
from fewstep.sweeps.definition.parse import load as load_sweep
from fewstep.sweeps.plan import plan

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="no diffusers: pip install 'fewstep[latents]'"
)


def images(count: int = 3, side: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


def tiny() -> Any:
    import diffusers

    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=4,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5,
    )  # fmt: skip


def deep() -> Any:
    import diffusers

    return diffusers.AutoencoderDC(
        latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), scaling_factor=0.5,
    )  # fmt: skip


@needs_diffusers
@pytest.mark.parametrize("make", [tiny, deep])
def test_those_with_one_latent_an_image(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make().eval()
    network.save_pretrained(tmp_path / "saved")
    ours = Autoencoder(entry_of("autoencoder", str(tmp_path / "saved")), CPU)
    assert ours.shape_of((3, 16, 16)) == (4, 8, 8)
    assert ours.images_of((4, 8, 8)) == (3, 16, 16)
    x = images()
    with torch.no_grad():
        z = network.encode(to_model(x), return_dict=False)[0]
        back = to_uint8(network.decode(z, return_dict=False)[0])
    mean, std = ours.encode(x)
    assert std is None
    torch.testing.assert_close(mean, 0.5 * z)
    assert (ours.decode(mean).int() - back.int()).abs().max() <= 1  # 0.5 z / 0.5 rounds

    data = Dataset("noise", Split(x), Split(x[:1]), 0)
    assert encode(data, {"name": "noise"}, ours, tmp_path / "latents", Settings(batch_size=2))
    assert (read_json(tmp_path / "latents/manifest.json") or {})["deterministic"] is True
    for posterior in ("sample", "mean"):  # there is nothing to draw
        loaded = Latents(str(tmp_path), "latents", posterior, cache=str(tmp_path / "cache")).load()
        assert loaded.train.std is None
        torch.testing.assert_close(loaded.train.x[:], mean)


@needs_diffusers
def test_folders_of_something_else(tmp_path: Path) -> None:
    for content, reason in (
        ('{"_class_name": "UNet2DModel"}', "its class is UNet2DModel"),
        ("{", "is not valid JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=f"cannot be loaded .*{reason}"):
            Autoencoder(Diffusers(str(tmp_path)), CPU)
    with pytest.raises(UserError, match="needs its weights: autoencoder=FOLDER"):
        Autoencoder(Diffusers(), CPU)
    with pytest.raises(UserError, match="unknown autoencoder 'difusers'; did you mean 'diffusers'"):
        entry_of("autoencoder", {"name": "difusers", "path": "x"})


@pytest.fixture
def taef2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's entry, as its entry point names it."""
    monkeypatch.syspath_prepend(ROOT / "examples/fewstep-taef2/src")
    from fewstep_taef2 import TAEF2  # type: ignore[import-not-found]

    monkeypatch.setitem(AUTOENCODERS._entries, "taef2", TAEF2())
    yield TAEF2
    del sys.modules["fewstep_taef2"]


def test_taef2_keeps_what_a_photograph_shows(taef2: Any) -> None:
    """PSNR, and latents of a standard deviation near 1; with half of them lost it is far lower."""
    weights = real_data("autoencoder") / "autoencoder"
    entry = entry_of("autoencoder", {"name": "taef2", "path": str(weights)})
    ours = Autoencoder(entry, CPU)
    x = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[
        None, :, :256, :256
    ]
    latents, std = ours.encode(x)
    assert std is None
    assert latents.shape[1:] == ours.shape_of((3, 256, 256)) == (32, 32, 32)
    assert 0.7 < float(latents.std()) < 1

    def psnr(z: Tensor) -> float:
        error = (ours.decode(z).double() - x.double()).square().mean()
        return float(10 * torch.log10(255**2 / error))

    assert psnr(latents) > 30
    latents[:, ::2] = 0
    assert psnr(latents) < 20


def test_taef2_says_what_it_lacks(taef2: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="taef2 needs its weights"):
        Autoencoder(taef2(), CPU)
    with pytest.raises(UserError, match=r"no file .*taef2_encoder\.safetensors"):
        Autoencoder(taef2(str(tmp_path)), CPU)


# ------------------------------------------------------------------- from images to a table


def photographs(root: Path, train: int, test: int) -> None:
    """Real CIFAR-10 as folders of PNGs, every class in each split."""
    data = CIFAR10(root=str(real_data("cifar10"))).load()
    for name, split, count in (("train", data.train, train), ("test", data.test, test)):
        assert split.y is not None
        for i in range(count):
            folder = root / name / f"class{int(split.y[i])}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.x[i].permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")


def test_images_to_latents_to_samples_to_a_table(
    taef2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encode at 64 pixels, train on 32x8x8, decode, and measure against real images."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "images", 120, 50)
    images = ["data=image_folder", "data.root=images", "data.folder=.", "data.size=64"]
    weights = f"{{name: taef2, path: {real_data('autoencoder') / 'autoencoder'}}}"
    eyes = "{name: efficientnet_lite0, size: 48}"
    app(["encode", *images, f"autoencoder={weights}", "output=latents"], standalone_mode=False)
    to = ["split=train", f"extractor={eyes}", "output=real.npz"]
    app(["reference", *images, *to, "--held-out"], standalone_mode=False)
    Path("latent.yaml").write_text(f"""
name: latent
base:
  data: latents
  data.root: {tmp_path}
  data.folder: latents
  backbone: dit_s_2
  backbone.width: 64
  backbone.depth: 2
  backbone.heads: 2
  training.steps: 80
  training.batch_size: 32
  training.lr: 2e-3
  evaluation.steps: [2]
  evaluation.samples: 50
  evaluation.reference_file: {tmp_path / "real.npz"}
  evaluation.extractor: {{name: decoded, autoencoder: {weights}, extractor: {eyes}}}
axes:
  objective: [flow_matching, shortcut]
""")
    planned = plan(load_sweep("latent.yaml"))
    planned.write()
    for member in planned.runs:
        run(member.directory)
    dataset = planned.runs[0].member.config.data.load()
    assert dataset.shape == (32, 8, 8)
    app(["sample", planned.runs[0].directory.key, "--count", "9"], standalone_mode=False)
    with Image.open("grid.png") as drawn:
        assert drawn.size == (3 * 64 + 4, 3 * 64 + 4)  # decoded, with gaps of 2
    frame = load(planned.directory)
    summary = summarise(frame)
    floor, reconstruction = summary.floor, summary.reconstruction
    assert floor is not None
    assert reconstruction is not None
    values = [summary.cells[place].mean for place in summary.cells]
    measure = main_metric(planned.runs[0].member.config.evaluation, dataset, tmp_path / "cache")
    noise = torch.randn(50, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    assert 0 < floor < reconstruction < min(values)
    assert max(values) < measure.of_samples(noise).value
    with np.load("real.npz") as file:
        held_out = file["held_out"]
    assert held_out.shape == (50, 1280)
    real = GaussianStats.read(Path("real.npz"))
    images_alone = GaussianStats.from_features(held_out, real.extractor, real.preprocess)
    assert floor == pytest.approx(frechet_distance(images_alone, real), rel=1e-3)
    assert "autoencoder's reconstructions" in quality.markdown(summary)
