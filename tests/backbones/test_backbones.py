"""Every network, with every option: against finite differences, and what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import BACKBONES, MLP, Backbone, DiT, UNet
from fewstep.backbones.dit import patchify, unpatchify
from fewstep.errors import UserError
from fewstep.objectives.core.tangent import jvp

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]


def dit(**options: Any) -> tuple[DiT, tuple[int, ...]]:
    return DiT(width=16, depth=2, heads=2, patch=2, **options), (3, 4, 4)


def mlp(**options: Any) -> tuple[MLP, tuple[int, ...]]:
    return MLP(width=16, depth=2, **options), (2,)


def unet(**options: Any) -> tuple[UNet, tuple[int, ...]]:
    return UNet(width=8, multipliers=(1, 2), depth=1, heads=2, **options), (2, 4, 6)


SHARED: dict[str, dict[str, Any]] = {
    "default": {},
    "fast time": {"time_frequency": 3.0},
    "fourier": {"time_embedding": "fourier", "time_frequency": 0.3},
    "few features": {"time_features": 8},
    "linear": {"jump_embedding": "linear"},
    "linear fourier": {
        "jump_embedding": "linear",
        "time_embedding": "fourier",
        "time_frequency": 0.3,
    },
    "double": {"modulation": "double"},
    "dropout": {"dropout": 0.3},
}
NORM: dict[str, dict[str, Any]] = {"rms": {"norm": "rms"}}
ATTENTION: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "per_dim": {"attention_scale": "per_dim"},
    "math": {"attention": "math"},
}
SMALL: dict[str, tuple[Backbone, tuple[int, ...]]] = {
    **{f"dit {k}": dit(**v) for k, v in (SHARED | NORM | ATTENTION).items()},
    **{f"mlp {k}": mlp(**v) for k, v in (SHARED | NORM).items()},
    **{f"unet {k}": unet(**v) for k, v in (SHARED | ATTENTION).items()},
    "unet without attention": unet(attention_levels=0),
    "unet attention everywhere": unet(attention_levels=2),
    "dit everything": dit(
        time_embedding="fourier",
        time_frequency=0.3,
        jump_embedding="linear",
        modulation="double",
        norm="rms",
        qk_norm=True,
        attention_scale="per_dim",
        dropout=0.2,
    ),
}


def central_difference(f: Callable[[float], Tensor], h: float = 1e-4) -> Tensor:
    """f'(0), up to an error of order h^4."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@pytest.mark.parametrize("kind", SMALL)
def test_output_is_shaped_like_the_input_and_zero_at_first(kind: str, inputs: Inputs) -> None:
    settings, shape = SMALL[kind]
    x, t, d, y = inputs(shape)
    out = settings.build(shape, 10, True).double()(x, t, d, y)
    assert out.shape == x.shape
    assert float(out.detach().abs().max()) == 0


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_every_argument_matters(kind: str, argument: int, awake: Awake, inputs: Inputs) -> None:
    settings, shape = SMALL[kind]
    net, given = awake(settings, shape).eval(), list(inputs(shape))
    before = net(*given)
    given[argument] = given[argument].flip(0) if argument != 2 else given[argument] / 2
    assert float((net(*given) - before).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("kind", SMALL)
def test_every_parameter_matters(kind: str, awake: Awake, inputs: Inputs) -> None:
    settings, shape = SMALL[kind]
    net = awake(settings, shape)
    (net(*inputs(shape)) * torch.randn(5, *shape)).sum().backward()
    still = [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("along", ["x", "t", "d", "all"])
@pytest.mark.parametrize("kind", SMALL)
def test_jvp_is_the_finite_difference(kind: str, along: str, awake: Awake, inputs: Inputs) -> None:
    settings, shape = SMALL[kind]
    net = awake(settings, shape)
    x, t, d, y = inputs(shape)
    tangents = [
        torch.randn_like(p) if along in (name, "all") else torch.zeros_like(p)
        for name, p in zip("xtd", (x, t, d), strict=True)
    ]

    def f(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        torch.manual_seed(2)  # the same dropout
        return net(x, t, d, y)

    value, tangent = jvp(net, f, (x, t, d), tuple(tangents))
    torch.testing.assert_close(value, f(x, t, d))

    def moved(h: float) -> Tensor:
        return f(*(p + h * dp for p, dp in zip((x, t, d), tangents, strict=True))).detach()

    assert float(tangent.abs().max()) > 1e-4
    torch.testing.assert_close(tangent, central_difference(moved), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [dit, mlp, unet])
@pytest.mark.parametrize("time_embedding", ["positional", "fourier"])
def test_the_tangent_along_a_linear_jump_at_zero(
    make: Callable[..., tuple[Backbone, tuple[int, ...]]],
    time_embedding: str,
    awake: Awake,
    inputs: Inputs,
) -> None:
    settings, shape = make(
        jump_embedding="linear", time_embedding=time_embedding, time_frequency=0.3
    )
    net = awake(settings, shape)
    x, t, _, y = inputs(shape)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    _, tangent = jvp(net, lambda d: net(x, t, d, y), (zero,), (one,))
    difference = central_difference(lambda h: net(x, t, zero + h, y).detach())
    assert float(tangent.abs().max()) > 1e-3
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [dit, mlp, unet])
def test_the_tangent_along_a_logarithmic_jump_ends_at_its_clamp(
    make: Callable[..., tuple[Backbone, tuple[int, ...]]], awake: Awake, inputs: Inputs
) -> None:
    settings, shape = make()
    net = awake(settings, shape)
    x, t, _, y = inputs(shape)
    one = torch.ones_like(t)
    for d in (0.0, 2.0**-11):
        _, tangent = jvp(net, lambda d: net(x, t, d, y), (torch.full_like(t, d),), (one,))
        assert float(tangent.abs().max()) == 0
    _, tangent = jvp(net, lambda d: net(x, t, d, y), (torch.full_like(t, 2.0**-9),), (one,))
    assert float(tangent.abs().max()) > 1e-3


@pytest.mark.parametrize("make", [dit, mlp, unet])
def test_missing_label_is_the_class_behind_the_last(
    make: Callable[..., tuple[Backbone, tuple[int, ...]]], awake: Awake, inputs: Inputs
) -> None:
    settings, shape = make()
    net = awake(settings, shape)
    x, t, d, _ = inputs(shape)
    torch.testing.assert_close(net(x, t, d), net(x, t, d, torch.full((5,), 10)))


@pytest.mark.parametrize("jump", [True, False])
def test_jump_length_must_be_given_exactly_where_asked_for(
    jump: bool, awake: Awake, inputs: Inputs
) -> None:
    settings, shape = mlp()
    net = awake(settings, shape, jump)
    x, t, d, y = inputs(shape)
    with pytest.raises(ValueError, match="jump length"):
        net(x, t, None if jump else d, y)


def test_zero_and_tiny_jumps_are_told_apart_from_the_smallest_used(
    awake: Awake, inputs: Inputs
) -> None:
    settings, shape = mlp()
    net = awake(settings, shape)
    x, t, _, y = inputs(shape)
    out = [net(x, t, torch.full_like(t, d), y) for d in (0.0, 1 / 128, 1 / 64)]
    assert bool(torch.isfinite(torch.stack(out)).all())
    assert float((out[0] - out[1]).detach().abs().max()) > 1e-3
    assert float((out[1] - out[2]).detach().abs().max()) > 1e-3


def test_patches_are_put_back_where_they_came_from() -> None:
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 16, 12)
    assert tokens[0, 1, :4].tolist() == [2.0, 3.0, 10.0, 11.0]  # second patch of the first row
    assert torch.equal(unpatchify(tokens, 2, x.shape), x)


@pytest.mark.parametrize(
    ("settings", "shape", "told"),
    [
        (DiT(patch=3), (1, 8, 8), "patch"),
        (DiT(), (2,), "square images"),
        (DiT(), (1, 8, 6), "square images"),
        (MLP(), (1, 8, 8), "vectors"),
        (UNet(), (2,), "a U-Net needs images"),
        (UNet(), (1, 8, 6), "divisible by 4"),
        (UNet(multipliers=(1, 1, 1, 1)), (1, 28, 28), "divisible by 8"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    settings: Backbone, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        settings.build(shape, 10, False)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (DiT, {"heads": 5}),
        (DiT, {"width": 0}),
        (DiT, {"depth": -1}),
        (DiT, {"mlp_ratio": 0.0}),
        (DiT, {"norm": "batch"}),
        (DiT, {"attention_scale": "sqrt"}),
        (DiT, {"attention": "fused"}),
        (MLP, {"norm": "group"}),
        (UNet, {"width": 30}),
        (UNet, {"heads": 5}),
        (UNet, {"multipliers": ()}),
        (UNet, {"multipliers": (1, 0)}),
        (UNet, {"attention_levels": 4}),
        *[
            (kind, wrong)
            for kind in (DiT, MLP, UNet)
            for wrong in (
                {"time_frequency": 0.0},
                {"time_embedding": "learned"},
                {"time_features": 7},
                {"time_features": 0},
                {"jump_embedding": "log"},
                {"modulation": "film"},
                {"dropout": 1.0},
                {"dropout": -0.1},
            )
        ],
    ],
)
def test_impossible_settings_are_refused(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="backbone") as caught:
        kind(**wrong)
    assert "\n" not in str(caught.value)
    assert next(iter(wrong)) in str(caught.value)


def test_everything_is_registered() -> None:
    family = {f"dit_{size}_{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)}
    family |= {"dit_b_2_kvfrans", "dit_xl_2_kvfrans", "unet_digits", "unet_mnist", "unet_32"}
    assert family | {"dit_digits", "dit_mnist", "mlp"} <= set(BACKBONES.names())
