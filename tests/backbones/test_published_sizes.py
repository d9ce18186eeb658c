"""Parameter counts of the DiT family against the published ones, part by part."""

from __future__ import annotations

import pytest
import torch

from fewstep.backbones import BACKBONES, DiT, parameters_by_part
from fewstep.backbones.dit import SIZES

# millions, Peebles & Xie 2023, table 4: 32x32x4 latents, 1000 classes, patch 2
PUBLISHED = {"s": 33, "b": 130, "l": 458, "xl": 675}
TOKENS, CHANNELS, CLASSES = 256, 4, 1000


def count(backbone: DiT, jump: bool = False) -> int:
    with torch.device("meta"):
        net = backbone.build((CHANNELS, 32, 32), CLASSES, jump)
    total = sum(p.numel() for p in net.parameters())
    assert sum(parameters_by_part(net).values()) == total
    return total


def family(name: str) -> DiT:
    backbone = BACKBONES[name]
    assert isinstance(backbone, DiT)
    return backbone


@pytest.mark.parametrize("size", PUBLISHED)
def test_within_one_percent_of_the_published_size(size: str) -> None:
    assert count(family(f"dit_{size}_2")) == pytest.approx(1e6 * PUBLISHED[size], rel=0.01)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_difference_from_the_published_network_is_known(size: str) -> None:
    width = SIZES[size].width
    sinusoids = 128 * width  # theirs has 256
    variance = (width + 1) * CHANNELS * 2**2  # theirs predicts a variance beside the mean
    positions = TOKENS * width  # theirs counts the fixed position embedding
    theirs = count(family(f"dit_{size}_2")) + sinusoids + variance + positions
    # what the sum must be by the published architecture, layer by layer
    depth, patch = SIZES[size].depth, CHANNELS * 2**2
    block = 18 * width**2 + 15 * width  # 4 of attention, 8 of feed-forward, 6 of modulation
    embeddings = patch * width + width + (256 + width + 2 + CLASSES + 1) * width
    final = 2 * width**2 + 2 * width + 2 * patch * (width + 1)
    assert theirs == depth * block + embeddings + positions + final
    assert theirs == pytest.approx(1e6 * PUBLISHED[size], rel=0.005)


def test_a_jump_length_adds_one_embedding() -> None:
    settings = family("dit_b_2")
    width, features = settings.width, settings.time_features
    extra = count(settings, jump=True) - count(settings)
    assert extra == features * width + width + width**2 + width


def test_parts() -> None:
    with torch.device("meta"):
        parts = parameters_by_part(family("dit_digits").build((1, 8, 8), 10, True))
    assert list(parts) == ["condition", "embed", "blocks", "modulation", "unembed"]
    assert parts["embed"] == parts["unembed"] + 60 == 4 * 64 + 64


@pytest.mark.parametrize("size", ["b", "xl"])
def test_settings_of_the_shortcut_models_code(size: str) -> None:
    theirs, ours = family(f"dit_{size}_2_kvfrans"), family(f"dit_{size}_2")
    assert (theirs.width, theirs.depth, theirs.heads) == (ours.width, ours.depth, ours.heads)
    assert (theirs.time_features, theirs.attention_scale) == (256, "per_dim")
    assert (theirs.jump_embedding, theirs.time_frequency) == ("log2", 1.0)
    assert count(theirs, jump=True) == count(ours, jump=True) + 2 * 128 * ours.width
