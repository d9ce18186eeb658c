"""The network of FID: its weights, its three layers, and two ways to 299 pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from fewstep.errors import UserError
from fewstep.experiments.data import DATA, Dataset
from fewstep.experiments.evaluation.measurement import MetricInstance
from fewstep.experiments.extractors import Inception
from fewstep.experiments.extractors.inception import PUBLISHED, cleanly_resized, network_class
from fewstep.experiments.metrics import METRICS
from fewstep.experiments.metrics.reference import Reference


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATA["digits"].load()


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file like the published one, of random weights, and its hash."""
    file = tmp_path_factory.mktemp("weights") / "pt_inception-random.pth"
    built: list[torch.nn.Module] = []

    class Unloaded(network_class()):  # type: ignore[misc]
        def load_state_dict(self, *given: object, **more: object) -> None:
            built.append(self)

    torch.save({}, file)
    torch.manual_seed(0)
    Unloaded("random", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(built[0].state_dict(), file)
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_inception_takes_no_other_weights_unless_told(
    digits: Dataset, inception: tuple[Path, str], tmp_path: Path
) -> None:
    file, sha256 = inception
    with pytest.raises(UserError, match=f"has sha256 {sha256}, expected {PUBLISHED}"):
        Inception(str(file)).prepare(digits, tmp_path)
    with pytest.raises(UserError, match=r"no file .*absent\.pth .*nothing is downloaded"):
        Inception("absent.pth").check(digits)
    with pytest.raises(UserError, match="needs its weights"):
        Inception().check(digits)
    features = Inception(str(file), sha256).prepare(digits, tmp_path)
    assert (features.sha256, features.is_fid) == (sha256, False)
    found = features.extract(digits.test.x[:3])
    assert found.shape == (3, 2048)
    assert np.isfinite(found).all()
    grey = digits.test.x[:2].expand(-1, 3, -1, -1)  # three equal channels are the same image
    np.testing.assert_allclose(features.extract(grey), found[:2], rtol=1e-4, atol=1e-6)
    reference = Reference(features, digits, tmp_path)
    assert (
        MetricInstance(METRICS["fd"], reference, 9, {}).identity["label"] == "FD-digits-inception@9"
    )
    assert reference.features.resize == "tf1-bilinear-299"


def by_hand(file: Path, resized: torch.Tensor) -> dict[str, np.ndarray]:
    """The layers of images that have 299 pixels already, from 0 to 255, block by block."""
    network: Any = network_class()("x", ["2048"], feature_extractor_weights_path=str(file))
    n = network
    with torch.no_grad():
        x = n.Conv2d_2b_3x3(n.Conv2d_2a_3x3(n.Conv2d_1a_3x3(resized / 128 - 1)))
        x = n.MaxPool_2(n.Conv2d_4a_3x3(n.Conv2d_3b_1x1(n.MaxPool_1(x))))
        for name in ("5b", "5c", "5d", "6a", "6b", "6c"):
            x = getattr(n, f"Mixed_{name}")(x)
        branch = n.Mixed_6d.branch1x1  # TensorFlow's mixed_6/conv
        spatial = nnf.conv2d(x, branch.conv.weight)
        shape = (1, -1, 1, 1)
        mean, var = branch.bn.running_mean.view(shape), branch.bn.running_var.view(shape)
        spatial = (spatial - mean) / (var + 1e-3).sqrt() * branch.bn.weight.view(shape)
        spatial = (spatial + branch.bn.bias.view(shape)).clamp(min=0)
        for name in ("6d", "6e", "7a", "7b", "7c"):
            x = getattr(n, f"Mixed_{name}")(x)
        pool = x.mean(dim=(2, 3))
        logits = pool @ n.fc.weight.T
    last = np.moveaxis(spatial.numpy(), 1, 3)[..., :7]  # channels last, as in TensorFlow
    return {"": pool.numpy(), "logits": logits.numpy(), "spatial": last.reshape(len(last), 2023)}


def test_layers_are_those_of_the_evaluators(
    digits: Dataset, inception: tuple[Path, str], tmp_path: Path
) -> None:
    file, sha256 = inception
    x, names = digits.test.x[:2], ("", "logits", "spatial")
    grid = torch.arange(299) * (8 / 299)  # TensorFlow 1: pixel i is at i times the scale
    low, share = grid.long(), grid - grid.long()
    high = (low + 1).clamp(max=7)
    tf1 = x.float()
    tf1 = tf1[..., low, :] * (1 - share)[:, None] + tf1[..., high, :] * share[:, None]
    tf1 = tf1[..., low] * (1 - share) + tf1[..., high] * share
    size = {"size": (299, 299), "mode": "bicubic", "align_corners": False, "antialias": True}
    clean = nnf.interpolate(x.float(), **size).clamp(0, 255)
    np.testing.assert_allclose(cleanly_resized(x), clean, atol=0.01)
    for resize, resized in (("tf1", tf1), ("clean", clean)):
        made = Inception(str(file), sha256, resize=resize).prepare(digits, tmp_path)
        assert made.layers is not None
        found, expected = made.layers(x, names), by_hand(file, resized.expand(-1, 3, -1, -1))
        for name in names:
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(found[name], expected[name], atol=1e-3 * largest)
        assert made.layer == "" != made.of_layer("spatial").layer
        assert expected["spatial"].std() > 0.1 * expected["spatial"].max() > 0


def test_a_clean_resize_filters_before_it_samples() -> None:
    stripes = (torch.arange(598) % 2 * 255).to(torch.uint8).expand(1, 3, 598, 598)
    grey = cleanly_resized(stripes)
    assert grey.shape == (1, 3, 299, 299)
    np.testing.assert_allclose(grey[..., 5:-5], 127.5, atol=8)  # every second one is black or white
    assert (grey != grey.round()).any()  # and it is not rounded
