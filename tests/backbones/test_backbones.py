"""Networks against finite differences, published sizes, and their promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import BACKBONES, MLP, DiT
from fewstep.backbones.dit import patchify, unpatchify
from fewstep.errors import UserError
from fewstep.objectives.base import jvp

SMALL = {
    "dit": (DiT(width=16, depth=2, heads=2, patch=2), (1, 4, 4)),
    "dit_qk": (DiT(width=16, depth=2, heads=2, patch=2, qk_norm=True), (3, 4, 4)),
    "mlp": (MLP(width=16, depth=2), (2,)),
}


def awake(settings: DiT | MLP, shape: tuple[int, ...], jump: bool = True) -> nn.Module:
    """A float64 network whose zero initialisations were shaken, so that everything matters."""
    torch.manual_seed(0)
    net = settings.build(shape, 10, jump).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, *shape, generator=g, dtype=torch.float64)
    t = torch.rand(5, generator=g, dtype=torch.float64) * 0.5 + 0.5
    return x, t, t / 3, torch.arange(5)


@pytest.mark.parametrize("kind", SMALL)
def test_output_is_shaped_like_the_input_and_zero_at_first(kind: str) -> None:
    settings, shape = SMALL[kind]
    x, t, d, y = inputs(shape)
    out = settings.build(shape, 10, True).double()(x, t, d, y)
    assert out.shape == x.shape
    assert float(out.detach().abs().max()) == 0


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_every_argument_matters(kind: str, argument: int) -> None:
    settings, shape = SMALL[kind]
    net, given = awake(settings, shape), list(inputs(shape))
    before = net(*given)
    given[argument] = given[argument].flip(0) if argument != 2 else given[argument] / 2
    assert float((net(*given) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", SMALL)
def test_jvp_is_the_finite_difference(kind: str) -> None:
    settings, shape = SMALL[kind]
    net = awake(settings, shape)
    x, t, d, y = inputs(shape)
    dx, dt, dd = torch.randn_like(x), torch.randn_like(t), torch.randn_like(d)
    value, tangent = jvp(lambda x, t, d: net(x, t, d, y), (x, t, d), (dx, dt, dd))
    torch.testing.assert_close(value, net(x, t, d, y))
    h = 1e-6
    ahead = net(x + h * dx, t + h * dt, d + h * dd, y)
    behind = net(x - h * dx, t - h * dt, d - h * dd, y)
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_missing_label_is_the_class_behind_the_last() -> None:
    settings, shape = SMALL["dit"]
    net = awake(settings, shape)
    x, t, d, _ = inputs(shape)
    torch.testing.assert_close(net(x, t, d), net(x, t, d, torch.full((5,), 10)))


@pytest.mark.parametrize("jump", [True, False])
def test_jump_length_must_be_given_exactly_where_asked_for(jump: bool) -> None:
    settings, shape = SMALL["mlp"]
    net = awake(settings, shape, jump)
    x, t, d, y = inputs(shape)
    with pytest.raises(ValueError, match="jump length"):
        net(x, t, None if jump else d, y)


def test_zero_and_tiny_jumps_are_told_apart_from_the_smallest_used() -> None:
    settings, shape = SMALL["mlp"]
    net = awake(settings, shape)
    x, t, _, y = inputs(shape)
    out = [net(x, t, torch.full_like(t, d), y) for d in (0.0, 1 / 128, 1 / 64)]
    assert bool(torch.isfinite(torch.stack(out)).all())
    assert float((out[0] - out[1]).abs().max()) > 1e-3
    assert float((out[1] - out[2]).abs().max()) > 1e-3


def test_patches_are_put_back_where_they_came_from() -> None:
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 16, 12)
    assert tokens[0, 1, :4].tolist() == [2.0, 3.0, 10.0, 11.0]  # second patch of the first row
    assert torch.equal(unpatchify(tokens, 2, x.shape), x)


# millions of parameters, Peebles & Xie 2023, table 4 (32x32x4 latents, 1000 classes, patch 2);
# theirs predicts a variance beside the mean, ours does not
@pytest.mark.parametrize(("name", "published"), [("dit_s_2", 33), ("dit_b_2", 130)])
def test_published_sizes(name: str, published: int) -> None:
    with torch.device("meta"):
        net = BACKBONES[name].build((4, 32, 32), 1000, False)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "shape", "told"),
    [
        (DiT(patch=3), (1, 8, 8), "patch"),
        (DiT(), (2,), "square images"),
        (DiT(), (1, 8, 6), "square images"),
        (MLP(), (1, 8, 8), "vectors"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    settings: DiT | MLP, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        settings.build(shape, 10, False)


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"width": 0}, {"depth": -1}, {"mlp_ratio": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="backbone"):
        DiT(**wrong)


def test_the_whole_family_is_registered() -> None:
    family = {f"dit_{size}_{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)}
    assert family | {"dit_digits", "dit_mnist", "mlp"} <= set(BACKBONES.names())
