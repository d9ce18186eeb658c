"""``fewstep encode``, and a run on what it made, through the real command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import finish, start, wait_for
from PIL import Image

from fewstep.cli.app import main

pytestmark = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="no diffusers: pip install 'fewstep[latents]'"
)
DIT = ("backbone=dit_digits", "backbone.patch=2", "backbone.width=16", "backbone.depth=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 images of 8x8 in 2 classes, and an autoencoder that halves them."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for i in range(60):
        path = folder / "data" / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    import diffusers  # takes seconds

    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=4,
    ).save_pretrained(folder / "autoencoder")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """We are in ``place``, with a cache of its own, and catch our own signals afterwards."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    ours = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    for number, handler in ours.items():
        signal.signal(number, handler)


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """The command in this process (importing torch and diffusers takes seconds)."""
    monkeypatch.setattr("sys.argv", ["fewstep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


IMAGES = ("data=image_folder", "data.size=8", "data.test_share=0.2", "autoencoder=autoencoder")


def test_from_images_to_a_table_of_raw_latents(place: Path, monkeypatch, capsys) -> None:
    given = ("output=data/latents", "shard=20", "batch_size=8", "device=cpu")
    for _ in range(2):  # the second time it is all there
        code, out, err = run(monkeypatch, capsys, "encode", *IMAGES, *given)
        assert code == 0, err
        assert "48 + 12 latents of 4x4x4, float32: data/latents" in out
    manifest = json.loads((place / "data/latents/manifest.json").read_text())
    assert manifest["source"]["data"]["folder"] == "images"
    assert "root" not in manifest["source"]["data"]
    settings = ("training.steps=3", "training.batch_size=8", "evaluation.steps=[1]")
    code, out, err = run(monkeypatch, capsys, "train", "data=latents", *DIT, *settings)
    assert code == 0, err
    assert "FD-latents-raw@12" in out
    (kept,) = (place / "runs").glob("train/*/samples/*.npz")
    with np.load(kept) as samples:
        assert samples["images"].shape == (12, 4, 4, 4)
        assert samples["images"].dtype == np.float32


def test_an_interrupted_one_is_continued(place: Path, monkeypatch, capsys) -> None:
    given = (*IMAGES, "output=data/again", "shard=1", "batch_size=1", "device=cpu")
    process = start("encode", *given, cwd=place)
    wait_for((place / "data/again/train-00001.safetensors").exists, "the second shard")
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert "the same command continues data/again" in done.stderr
    kept = {p.name: p.stat().st_mtime_ns for p in (place / "data/again").glob("*.safetensors")}
    assert len(kept) < 60
    code, out, err = run(monkeypatch, capsys, "encode", *given)
    assert code == 0, err
    assert "48 + 12 latents" in out
    for name, changed in kept.items():
        assert (place / "data/again" / name).stat().st_mtime_ns == changed


REFUSED = {
    "": "encode needs autoencoder=",
    "autoencoder=autoencoder": "encode needs output=",
    "autoencodr=x output=o": "unknown setting 'autoencodr' of encode; did you mean 'autoencoder'?",
    "training.steps=3": "unknown setting 'training.steps' of encode",
    "autoencoder=x output=o shard=many": "shard takes a int, got 'many'",
    "autoencoder=x output=o shard=0": "shard must be at least 1, got 0",
    "autoencoder=x output=o dtype=bfloat16": "unknown dtype 'bfloat16'",
    "autoencoder=x output=o data=digit": "unknown data set 'digit'; did you mean 'digits'?",
    "autoencoder=x output=o data=gaussians": "gaussians is not made of images",
    "autoencoder=./gone output=o": "autoencoder './gone' cannot be loaded",
    "autoencoder=x output=o data=image_folder data.folder=gone": "/data/gone (data.folder=",
    "autoencoder=x output=o data=latents": "/data/latents: it has no manifest",
    "autoencoder=x output=o device=gpu": "unknown device 'gpu'; did you mean 'cpu'?",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input(monkeypatch, capsys, tmp_path: Path, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, "encode", *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert REFUSED[words] in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    words = ("encode", *IMAGES, f"output={tmp_path / 'file' / 'o'}")
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "cannot write latents to" in err
