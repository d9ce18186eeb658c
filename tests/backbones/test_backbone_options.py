"""Each option of the networks against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones import MLP, AttentionSettings, Backbone, ConditioningSettings, DiT, UNet
from fewstep.backbones.attention import multi_head_attention
from fewstep.backbones.embeddings import FourierEmbedding, SinusoidalEmbedding
from fewstep.backbones.layers import Modulation, normalise
from fewstep.errors import UserError
from fewstep.objectives.core.tangent import jvp

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]

KINDS: dict[str, tuple[Callable[..., Backbone], tuple[int, ...]]] = {
    "dit": (lambda **options: DiT(width=16, depth=2, heads=2, **options), (1, 4, 4)),
    "mlp": (lambda **options: MLP(width=16, depth=2, **options), (3,)),
    "unet": (lambda **options: UNet(width=8, multipliers=(1, 2), depth=1, **options), (1, 4, 4)),
}


# ---- embeddings --------------------------------------------------------------------------------


def test_fourier_features_are_random_waves_of_mean_square_one() -> None:
    features = FourierEmbedding(20_000, 0.5).double()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    value, slope = jvp(features, features, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(value.square().mean(1), torch.ones_like(t), rtol=0.03, atol=0)
    # E cos(a) cos(b) over frequencies from N(0, 1/4): exp(-(2 pi (t - s) / 2)^2 / 2)
    closed = math.exp(-((math.pi * 0.3) ** 2) / 2)
    assert float((value[0] * value[1]).mean()) == pytest.approx(closed, abs=0.03)
    expected = torch.full_like(t, (2 * math.pi * 0.5) ** 2)
    torch.testing.assert_close(slope.square().mean(1), expected, rtol=0.05, atol=0)


def test_the_slope_of_fourier_features_is_many_times_that_of_the_positional_ones() -> None:
    t = torch.linspace(0, 1, 50, dtype=torch.float64)

    def slope(features: nn.Module) -> float:
        _, tangent = jvp(features, features, (t,), (torch.ones_like(t),))
        return float(tangent.square().mean().sqrt())

    ratio = slope(FourierEmbedding(4096, 1.0).double()) / slope(
        SinusoidalEmbedding(128, 1.0).double()
    )
    assert ratio == pytest.approx(35, rel=0.1)  # as the settings' docstring says


def test_fourier_features_are_the_same_for_every_seed_and_in_the_checkpoint() -> None:
    settings = DiT(width=16, depth=1, heads=2, time_embedding="fourier")
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(settings.build((1, 4, 4), 0, False).state_dict())
    name = "condition.time.0.frequencies"
    assert torch.equal(made[0][name], made[1][name])
    assert "condition.time.0.phases" in made[0]


def test_the_scale_of_the_frequencies() -> None:
    a, b = FourierEmbedding(64, 1.0), FourierEmbedding(64, 0.25)
    torch.testing.assert_close(b.frequencies, a.frequencies / 4)
    assert torch.equal(a.phases, b.phases)


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_are_embedded_by_log2_or_as_they_are(kind: str, awake: Awake, inputs: Inputs) -> None:
    make, shape = KINDS[kind]
    x, t, _, y = inputs(shape)
    d = torch.tensor([1, 1 / 2, 2**-7, 2**-10, 0], dtype=torch.float64)
    levels = torch.tensor([0, 1, 7, 10, 10], dtype=torch.float64)
    for jump_embedding, expected in (("log2", levels), ("linear", d)):
        net = awake(make(jump_embedding=jump_embedding), shape)
        seen: list[Tensor] = []
        net.condition.jump.register_forward_pre_hook(lambda _, given, s=seen: s.append(given[0]))
        net(x, t, d, y)
        torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_log2_cannot_tell_jumps_below_its_clamp_and_linear_can(
    kind: str, awake: Awake, inputs: Inputs
) -> None:
    make, shape = KINDS[kind]
    x, t, _, y = inputs(shape)
    for jump_embedding, same in (("log2", True), ("linear", False)):
        net = awake(make(jump_embedding=jump_embedding), shape)
        none, tiny = (net(x, t, torch.full_like(t, d), y) for d in (0.0, 2.0**-11))
        assert torch.equal(none, tiny) is same


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"time_embedding": "fourier"},
        {"jump_embedding": "linear"},
        {"dropout": 0.5},
        {"norm": "rms"},
        {"qk_norm": True},
        {"attention": "math"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_without_parameters_leaves_the_initial_ones_alone(
    kind: str, options: dict[str, Any]
) -> None:
    make, shape = KINDS[kind]
    if next(iter(options)) not in make().__dataclass_fields__:  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            make(**options)
        return
    made = []
    for settings in (make(), make(**options)):
        torch.manual_seed(0)
        net = settings.build(shape, 10, True)
        made.append((dict(net.named_parameters()), torch.get_rng_state()))
    (plain, drawn), (other, drawn_too) = made
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert torch.equal(drawn, drawn_too)


# ---- normalisation and modulation --------------------------------------------------------------


def test_norms() -> None:
    h = torch.randn(4, 3, 50, dtype=torch.float64) * 3 + 1
    rms = normalise(h, "rms")
    torch.testing.assert_close(rms, h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    centred = h - h.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    torch.testing.assert_close(normalise(h, "layer"), centred / (variance + 1e-6).sqrt())


def modulation(kind: str) -> tuple[Modulation, Tensor]:
    torch.manual_seed(0)
    made = Modulation(6, 5, ("shift", "scale", "gate"), kind).double()
    with torch.no_grad():
        made.weight.normal_()
    return made, torch.randn(4, 6, dtype=torch.float64)


def test_adaln_modulation() -> None:
    made, c = modulation("adaln")
    b, s, gate = (c @ made.weight.T + made.bias).chunk(3, dim=1)
    for part, expected in zip(made(c), (b, 1 + s, gate), strict=True):
        torch.testing.assert_close(part, expected)


def test_double_modulation_normalises_shift_and_scale_but_not_the_gate() -> None:
    made, c = modulation("double")
    b, s, gate = (c @ made.weight.T + made.bias).chunk(3, dim=1)
    shift, factor, same = made(c)
    torch.testing.assert_close(shift, b / (b.square().mean(1, keepdim=True) + 1e-6).sqrt())
    torch.testing.assert_close(factor, s / (s.square().mean(1, keepdim=True) + 1e-6).sqrt())
    torch.testing.assert_close(same, gate)
    large, _, _ = made(1e3 * c)  # however far the condition goes
    assert float(large.square().mean(1).max().detach()) == pytest.approx(1)


def test_a_double_modulation_starts_with_gates_shut_and_no_steep_slope() -> None:
    torch.manual_seed(0)
    made = Modulation(64, 64, ("shift", "scale", "gate"), "double").double()
    c = torch.randn(3, 64, dtype=torch.float64)
    shift, factor, gate = made(c)
    assert float(gate.detach().abs().max()) == 0
    torch.testing.assert_close(factor, torch.ones_like(factor), rtol=1e-6, atol=0)
    assert float(shift.square().mean().detach()) == pytest.approx(1)
    v = made.bias.detach().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: torch.func.functional_call(made, {"bias": v}, (c[:1],))[0], v
    )
    assert float(jacobian.abs().max()) < 2  # it would be 1000 with the biases at 0


@pytest.mark.parametrize("kind", ["adaln", "double"])
def test_blocks_start_as_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    transformer = DiT(width=16, depth=1, heads=2, modulation=kind).build((1, 4, 4), 0, False)
    h, c = torch.randn(2, 4, 16), torch.randn(2, 16)
    assert torch.equal(transformer.blocks[0](h, c), h)
    perceptron = MLP(width=16, depth=1, modulation=kind).build((3,), 0, False)
    assert torch.equal(perceptron.blocks[0](h[:, 0], c), h[:, 0])
    convolutional = UNet(width=8, depth=1, modulation=kind).build((1, 4, 4), 0, False)
    h, c = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    assert torch.equal(convolutional.down[0](h, c), h)


def test_the_block_of_a_dit_is_its_formula() -> None:
    torch.manual_seed(0)
    transformer = DiT(width=16, depth=1, heads=2).build((1, 4, 4), 0, False).double()
    block = transformer.blocks[0]
    for p in block.parameters():
        p.data.normal_(std=0.3)
    h, c = torch.randn(2, 4, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)

    def norm(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    out = block(h, c)
    conditions = (c @ block.modulation.weight.T + block.modulation.bias)[:, None].chunk(6, dim=-1)
    shift, scale, gate = conditions[:3]
    q, k, v = (a.view(2, 4, 2, 8) for a in block.qkv((1 + scale) * norm(h) + shift).chunk(3, -1))
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
    h = h + gate * block.out(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(2, 4, 16))
    shift, scale, gate = conditions[3:]
    a = block.up((1 + scale) * norm(h) + shift)
    gelu = a / 2 * (1 + ((2 / math.pi) ** 0.5 * (a + 0.044715 * a**3)).tanh())
    torch.testing.assert_close(out, h + gate * block.down(gelu))


def test_the_block_of_an_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    block = MLP(width=16, depth=1).build((3,), 0, False).double().blocks[0]
    for p in block.parameters():
        p.data.normal_(std=0.3)
    h, c = torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    shift, scale, gate = (c @ block.modulation.weight.T + block.modulation.bias).chunk(3, dim=1)
    centred = h - h.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    a = block.up((1 + scale) * normal + shift)
    torch.testing.assert_close(block(h, c), h + gate * block.down(a * a.sigmoid()))


# ---- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("scale", ["per_sqrt_dim", "per_dim"])
def test_attention_is_its_formula(scale: str, qk_norm: bool) -> None:
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 3 * 12, generator=g, dtype=torch.float64)
    settings = DiT(attention_scale=scale, qk_norm=qk_norm)
    out = multi_head_attention(qkv, 3, settings)
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        q, k, v = (part[..., own] for part in qkv.chunk(3, dim=-1))
        if qk_norm:
            q, k = (a / a.square().mean(-1, keepdim=True).sqrt() for a in (q, k))
        products = q @ k.transpose(1, 2) / (4 if scale == "per_dim" else 2)
        torch.testing.assert_close(out[..., own], products.softmax(-1) @ v)


@pytest.mark.parametrize("kernel", ["math", "flash"])  # the kernels a CPU has
@pytest.mark.parametrize("scale", ["per_sqrt_dim", "per_dim"])
def test_a_forced_kernel_gives_the_same_result(kernel: str, scale: str) -> None:
    qkv = torch.randn(2, 7, 3 * 12, dtype=torch.float64)
    free = multi_head_attention(qkv, 3, DiT(attention_scale=scale))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):  # there is none here: ours must win
        forced = multi_head_attention(qkv, 3, DiT(attention_scale=scale, attention=kernel))
    torch.testing.assert_close(free, forced)


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])  # the kernels a CPU has not
def test_a_kernel_that_does_not_fit_is_told(
    kind: str, kernel: str, awake: Awake, inputs: Inputs
) -> None:
    make, shape = KINDS[kind]
    net = awake(make(attention=kernel), shape)
    with pytest.raises(UserError, match=f"backbone.attention '{kernel}'.* cpu .*auto, math$") as e:
        net(*inputs(shape))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_kernel_without_tangent_is_told(kind: str, awake: Awake, inputs: Inputs) -> None:
    make, shape = KINDS[kind]
    net = awake(make(attention="flash"), shape)
    x, t, d, y = inputs(shape)
    net(x, t, d, y)
    with pytest.raises(UserError, match=r"backbone.attention 'flash'.*derivative.*auto, math$"):
        jvp(net, lambda x: net(x, t, d, y), (x,), (x,))


def test_another_error_of_the_kernel_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(nnf, "scaled_dot_product_attention", fail)
    with pytest.raises(torch.OutOfMemoryError):
        multi_head_attention(torch.randn(1, 2, 12), 1, DiT(attention="flash"))


# ---- dropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_in_training_only_and_only_where_asked_for(
    kind: str, awake: Awake, inputs: Inputs
) -> None:
    make, shape = KINDS[kind]
    given = inputs(shape)

    def outputs(dropout: float, training: bool) -> tuple[Tensor, Tensor, bool]:
        net = awake(make(dropout=dropout), shape).train(training)
        before = torch.get_rng_state()
        first = net(*given)
        drew = not torch.equal(before, torch.get_rng_state())
        return first, net(*given), drew

    plain, again, drew = outputs(0, training=True)
    assert torch.equal(plain, again)
    assert not drew
    first, second, drew = outputs(0.3, training=True)
    assert not torch.equal(first, second)
    assert drew
    first, second, drew = outputs(0.3, training=False)
    torch.testing.assert_close(first, plain)
    assert torch.equal(first, second)
    assert not drew


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    net = MLP(width=4096, depth=1, dropout=0.3).build((2,), 0, False)
    seen: list[Tensor] = []
    net.blocks[0].down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x, t = torch.randn(8, 2), torch.rand(8)
    net(x, t)
    net.eval()(x, t)
    dropped, whole = seen
    zeros = (dropped == 0).float().mean()
    assert float(zeros) == pytest.approx(0.3, abs=0.02)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.7)


def test_the_shared_settings_have_the_same_defaults_everywhere() -> None:
    shared, attentive = ConditioningSettings.__annotations__, AttentionSettings.__annotations__
    for kind, names in ((DiT, shared | attentive), (MLP, shared), (UNet, shared | attentive)):
        assert issubclass(kind, ConditioningSettings)
        for name in names:
            assert getattr(kind(), name) == getattr(DiT(), name), f"{kind.__name__}.{name}"
