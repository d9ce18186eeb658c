"""Runs on the real CIFAR-10: U-Net and DiT, flips, FD and KID of 10,000 images."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers.real_data import real_data

from fewstep.experiments.config.run_config import RunConfig, compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.augmentation import randomised
from fewstep.objectives import Batch

SMALL = {
    "unet_32": ["backbone.width=16", "backbone.depth=1", "backbone.multipliers=[1,2]"],
    "dit_s_2": ["backbone.width=32", "backbone.depth=2", "backbone.heads=2", "backbone.patch=8"],
}


def config_of(backbone: str, root: Path, *overrides: str) -> RunConfig:
    data = real_data("cifar10")
    return compose([
        "data=cifar10", f"data.root={data}", f"backbone={backbone}", *SMALL[backbone],
        "training.batch_size=32", "training.flip=true", "evaluation.extractor=random_conv",
        *overrides, ("runs", str(root)),
    ])  # fmt: skip


def test_steps_of_the_unet_on_flipped_images(tmp_path: Path) -> None:
    config = config_of("unet_32", tmp_path, "training.steps=20", "evaluation.steps=[]")
    data = config.data.load()
    assert (len(data.train), len(data.test), data.shape) == (50_000, 10_000, (3, 32, 32))
    directory = prepare(config)
    run(directory)
    assert directory.metrics()[-1]["step"] == 20
    x = data.train.x[:64].float()
    shown = randomised(config, Batch(x, None), data.num_classes, 0, torch.Generator()).x
    mirrored, same = ((shown == one).flatten(1).all(1) for one in (x.flip(3), x))
    assert bool((mirrored | same).all())
    assert 16 < int(mirrored.sum()) < 48


def test_fd_and_kid_of_ten_thousand_images(tmp_path: Path) -> None:
    config = config_of(
        "dit_s_2", tmp_path, "training.steps=100", "training.lr=2e-3", "training.ema=0.8",
        "evaluation.steps=[1]", "evaluation.samples=10000", "evaluation.metrics=[fd,kid]",
        "evaluation.reference=test",
    )  # fmt: skip
    directory = prepare(config)
    run(directory)
    found = {r["metric"]["name"]: r for r in directory.cells().values()}
    assert set(found) == {"FD", "KID"}
    assert found["KID"]["metric"]["reference_samples"] == 10_000
    # training images against test images: KID is unbiased, so nearly nothing
    assert abs(found["KID"]["floor"]) < found["KID"]["error"]
    assert found["KID"]["value"] > 20 * abs(found["KID"]["floor"])
    assert 0 < found["FD"]["floor"] < found["FD"]["value"] / 20
