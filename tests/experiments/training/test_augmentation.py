"""Flips and EDM's augmentation: what is done to images, and that the network is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import taught, tiny, trainer
from torch import Tensor

from fewstep.backbones.dit import DiT
from fewstep.backbones.embeddings import ConditionEmbedding
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.rng import generator
from fewstep.experiments.training import augmentation
from fewstep.experiments.training.augmentation import LABELS, augmented, flipped
from fewstep.experiments.training.network import add_augmentation
from fewstep.experiments.validation import check


def images(count: int, side: int = 16) -> Tensor:
    """Smooth ones, each another."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flips_mirror_half_of_the_images() -> None:
    x = images(4000, 4)
    changed = flipped(x, g())
    mirrored = (changed == x.flip(3)).flatten(1).all(1)
    kept = (changed == x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert float(mirrored.double().mean()) == pytest.approx(0.5, abs=0.03)


def test_nothing_but_a_mirror_is_done_with_probability_0() -> None:
    x = images(500)
    changed, labels = augmented(x, 0.0, g())
    mirror = labels[:, 0].bool()
    assert torch.equal(changed, torch.where(mirror[:, None, None, None], x.flip(3), x))
    assert bool((labels[:, 1:] == 0).all())
    assert float(mirror.double().mean()) == pytest.approx(0.5, abs=0.1)


def test_each_change_has_its_probability_and_its_size() -> None:
    _, labels = augmented(torch.zeros(20_000, 1, 4, 4), 0.3, g())
    share = {i: float((labels[:, i] != 0).double().mean()) for i in range(LABELS)}
    expected = {0: 0.5, 1: 0.15, 2: 0.3, 4: 0.3, 5: 0.3, 6: 0.15, 7: 0.3, 8: 0.3}
    for i, probability in expected.items():
        assert share[i] == pytest.approx(probability, abs=0.015), i
    for i in (2, 7, 8):  # normal numbers
        assert float(labels[labels[:, i] != 0, i].std()) == pytest.approx(1, abs=0.05)
    turned = labels[labels[:, 4] != 0]
    torch.testing.assert_close((turned[:, 3] + 1) ** 2 + turned[:, 4] ** 2, torch.ones(len(turned)))


def disc(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The centre, in widths of the image, and the spread of each image's mass, by its moments."""
    places = (torch.arange(x.shape[-1]) + 0.5) / x.shape[-1] - 0.5
    mass = x[:, 0].clamp(min=0)
    total = mass.sum((1, 2))
    right = (mass * places).sum((1, 2)) / total
    down = (mass * places[:, None]).sum((1, 2)) / total
    square = ((mass * (places**2 + places[:, None] ** 2)).sum((1, 2))) / total
    return right, down, (square - right**2 - down**2).sqrt()


def only(p: float, column: tuple[int, ...], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images to which just the changes of some labels were done: before, after, labels."""
    after, labels = augmented(x, p, g(3))
    others = [i for i in range(LABELS) if i not in column]
    mine = (labels[:, others] == 0).all(1) & (labels[:, column] != 0).any(1)
    assert int(mine.sum()) > 5
    return x[mine], after[mine], labels[mine]


def test_images_are_moved_scaled_and_turned_as_the_labels_say() -> None:
    """A disc beside the centre: where it is afterwards, and how large, from its moments."""
    side, p = 48, 0.4
    places = (torch.arange(side) + 0.5) / side - 0.5
    spot = torch.exp(-((places[None] - 0.12) ** 2 + (places[:, None] + 0.05) ** 2) / (2 * 0.05**2))
    x = spot.expand(3000, 1, side, side)
    near = {"atol": 4e-3, "rtol": 0.02}
    _, after, labels = only(p, (7, 8), x)
    inside = (labels[:, 7:].abs() < 1.2).all(1)  # the others leave the image
    right, down, spread = disc(after[inside])
    shift = 0.125 * labels[inside, 7:]
    torch.testing.assert_close(right, 0.12 + shift[:, 0], **near)
    torch.testing.assert_close(down, -0.05 + shift[:, 1], **near)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.05 * 2**0.5), **near)
    _, after, labels = only(p, (2,), x)
    inside = labels[:, 2].abs() < 1.5
    right, _, spread = disc(after[inside])
    factor = 2 ** (0.2 * labels[inside, 2])
    torch.testing.assert_close(right, 0.12 * factor, **near)
    torch.testing.assert_close(spread, 0.05 * 2**0.5 * factor, **near)
    _, after, labels = only(p, (3, 4), x)
    right, down, _ = disc(after)
    cos, sin = labels[:, 3] + 1, labels[:, 4]
    torch.testing.assert_close(right, 0.12 * cos - 0.05 * sin, **near)
    torch.testing.assert_close(down, -0.12 * sin - 0.05 * cos, **near)


# ------------------------------------------------------------------------- in a run


@pytest.mark.parametrize("classes", [10, 0])
def test_the_network_is_told_and_samples_are_drawn_without(classes: int) -> None:
    network = ConditionEmbedding(DiT(), 32, (classes, False, 0))
    add_augmentation(network, "dit")
    t, y = torch.full((4,), 0.5), torch.arange(4) if classes else None
    labels = torch.zeros(4, LABELS)
    with torch.no_grad():
        undone = network(t, None, y)
        assert torch.equal(network(t, None, augmentation.labelled(y, labels)), undone)
        labels[0, 2] = 1.0
        told = network(t, None, augmentation.labelled(y, labels))
    assert not torch.equal(told[0], undone[0])
    assert torch.equal(told[1:], undone[1:])


def test_a_run_trains_the_weights_of_the_labels(tmp_path: Path) -> None:
    config = tiny(tmp_path, "training.augment=0.5", "training.label_dropout=0.2")
    assert config.key != tiny(tmp_path, "training.label_dropout=0.2").key
    made = trainer(config)
    for _ in range(3):  # output and modulation start at 0
        made._update()
    [weight] = [p for name, p in made.named.items() if "augmentation" in name]
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_a_step_is_augmented_the_same_each_time(tmp_path: Path) -> None:
    training = tiny(tmp_path, "training.augment=0.5").training
    x = images(8)
    first, labels = augmentation.changed(training, x, 3, 7)
    again, same = augmentation.changed(training, x, 3, 7)
    other, _ = augmentation.changed(training, x, 3, 8)
    assert torch.equal(first, again)
    assert torch.equal(labels, same)  # type: ignore[arg-type]
    assert not torch.equal(first, other)
    mirrored = flipped(x, generator(3, "flip", 7, device=x.device))
    flips = tiny(tmp_path, "training.flip=true").training
    assert torch.equal(augmentation.changed(flips, x, 3, 7)[0], mirrored)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data=gaussians", "training.flip=true"], "training.flip=True needs images, and"),
        (["training.flip=true", "training.augment=0.1"], "0.1 flips images itself"),
        (["objective=reflow", "training.flip=true"], "the noise of a stored pair belongs"),
        (["objective=scd", "training.augment=0.1"], "with a teacher, which was not told of it"),
        (["training.augment=1.5"], "training.augment must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_what_cannot_be_augmented(settings: list[str], says: str, tmp_path: Path) -> None:
    named = [s.partition("=")[2] for s in settings if s.startswith("objective=")]
    base: list[Any] = list(taught(tmp_path, named[0])) if named else []
    made = tiny if "data=gaussians" not in settings else lambda _, *asked: compose(asked)
    with pytest.raises(UserError, match=says):
        check([made(tmp_path, *base, *settings)])
