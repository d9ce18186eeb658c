"""The U-Net: its stages, its attention, and which images it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import BACKBONES, UNet
from fewstep.backbones.unet import Attention, Downsample, ResBlock, Upsample, group_norm

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (UNet(width=8, multipliers=(1,), depth=1), (1, 5, 3)),
        (UNet(width=8, multipliers=(1, 2), depth=2), (3, 6, 10)),
        (UNet(width=8, multipliers=(2, 1, 3), depth=1, attention_levels=3), (2, 8, 8)),
        (UNet(width=8, multipliers=(1, 1, 1, 2), depth=1, attention_levels=0), (1, 16, 24)),
    ],
)
def test_any_image_with_sides_divisible_often_enough(
    settings: UNet, shape: tuple[int, ...], awake: Awake, inputs: Inputs
) -> None:
    net = awake(settings, shape)
    sides: list[tuple[int, ...]] = []
    for stage in [*net.down, *net.middle, *net.up]:
        stage.register_forward_hook(lambda module, given, out: sides.append(out.shape[2:]))
    x, t, d, y = inputs(shape)
    assert net(x, t, d, y).shape == x.shape
    coarsest = 2 ** (len(settings.multipliers) - 1)
    assert min(sides) == (shape[1] // coarsest, shape[2] // coarsest)
    assert sides[-1] == shape[1:]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("unet_digits", (1, 8, 8)), ("unet_mnist", (1, 28, 28)), ("unet_32", (3, 32, 32))],
)
def test_the_registered_ones_fit_their_images(name: str, shape: tuple[int, ...]) -> None:
    net = BACKBONES[name].build(shape, 10, True)
    x, t = torch.randn(1, *shape), torch.rand(1)
    with torch.no_grad():
        assert net(x, t, t, torch.zeros(1, dtype=torch.int64)).shape == x.shape


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_attention_stands_at_the_lowest_levels(levels: int) -> None:
    settings = UNet(width=8, multipliers=(1, 2, 4), depth=2, attention_levels=levels)
    net = settings.build((1, 8, 8), 0, False)

    def attentive(stages: nn.ModuleList, channels: int) -> int:
        blocks = [stage for stage in stages if isinstance(stage, ResBlock)]
        own = [block for block in blocks if block.first.out_channels == channels]
        return sum(isinstance(block.attention, Attention) for block in own)

    for level, channels in enumerate((8, 16, 32)):
        inside = level >= 3 - levels
        assert attentive(net.down, channels) == (2 if inside else 0)
        assert attentive(net.up, channels) == (3 if inside else 0)
    assert attentive(net.middle, 32) == (levels > 0)


def test_every_stage_on_the_way_down_is_taken_in_on_the_way_up(
    awake: Awake, inputs: Inputs
) -> None:
    settings, shape = UNet(width=8, multipliers=(1, 2), depth=2), (1, 4, 4)
    net = awake(settings, shape)
    gave, took = [], []
    net.stem.register_forward_hook(lambda module, given, out: gave.append(out))
    for stage in net.down:
        stage.register_forward_hook(lambda module, given, out: gave.append(out))
    for stage in net.up:
        if isinstance(stage, ResBlock):
            stage.register_forward_pre_hook(lambda module, given: took.append(given[0]))
    net(*inputs(shape))
    assert len(gave) == len(took) == 6
    for kept, joined in zip(reversed(gave), took, strict=True):
        torch.testing.assert_close(joined[:, -kept.shape[1] :], kept)


def test_a_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 12, 6, UNet(width=8, heads=2), attention=False).double()
    for p in block.parameters():
        p.data.normal_(std=0.3)
    h, c = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def normal(h: Tensor, groups: int) -> Tensor:
        grouped = h.reshape(2, groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        return (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view_as(h)

    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    affine = block.norm.weight[:, None, None], block.norm.bias[:, None, None]
    new = block.first(silu(normal(h, 2) * affine[0] + affine[1]))
    b, s = (c @ block.modulation.weight.T + block.modulation.bias).chunk(2, dim=1)
    new = silu(normal(new, 1) * (1 + s)[:, :, None, None] + b[:, :, None, None])
    torch.testing.assert_close(block(h, c), block.shortcut(h) + block.second(new))


def test_attention_without_a_preference_adds_the_mean_over_the_pixels() -> None:
    layer = Attention(8, UNet(width=8, heads=2)).double()
    with torch.no_grad():  # queries and keys 0, values as they are
        layer.qkv.weight.copy_(torch.cat([torch.zeros(16, 8), torch.eye(8)]))
        layer.qkv.bias.zero_()
        layer.out.weight.copy_(torch.eye(8))
    h = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    mean = layer.norm(h).mean((2, 3), keepdim=True)
    torch.testing.assert_close(layer(h), h + mean)


def test_attention_treats_all_pixels_alike() -> None:
    torch.manual_seed(0)
    layer = Attention(8, UNet(width=8, heads=2)).double()
    for p in layer.parameters():
        p.data.normal_()
    h = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(h.flip(2, 3)), layer(h).flip(2, 3))
    torch.testing.assert_close(layer(h.transpose(2, 3)), layer(h).transpose(2, 3))


def test_half_and_double_the_side() -> None:
    h, c = torch.randn(2, 4, 6, 8), torch.randn(2, 3)
    assert Downsample(4)(h, c).shape == (2, 4, 3, 4)
    double = Upsample(4)
    with torch.no_grad():  # the convolution that does nothing
        double.conv.weight.copy_(nn.init.dirac_(torch.empty(4, 4, 3, 3)))
        double.conv.bias.zero_()
    out = double(h, c)
    assert out.shape == (2, 4, 12, 16)
    for i in (0, 1):
        for j in (0, 1):
            torch.testing.assert_close(out[:, :, i::2, j::2], h)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (96, 8), (128, 32), (256, 32)])
def test_groups_of_at_least_four_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
