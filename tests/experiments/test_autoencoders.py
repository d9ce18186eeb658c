"""Autoencoders: three of diffusers, untrained, and TAEF2 with its real weights."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.autoencoders import AUTOENCODERS, Autoencoder, Diffusers, entry_of
from fewstep.experiments.autoencoders.encode import Settings, encode
from fewstep.experiments.data import Dataset, Split, to_model, to_uint8
from fewstep.experiments.data.latents import Latents
from fewstep.experiments.store.json_files import read_json

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("FEWSTEP_TEST_DATA", ROOT.parent / "shared" / "data"))
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
    entry = entry_of("autoencoder", {"name": "taef2", "path": str(REAL / "autoencoder")})
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
