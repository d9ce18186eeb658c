"""Recomputed activations change nothing but the memory, whatever the objective."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import MLP, Backbone, DiT, UNet
from fewstep.objectives import OBJECTIVES, Batch, Nets, Objective, Progress
from fewstep.objectives.core.tangent import jvp

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]

KINDS: dict[str, tuple[Backbone, tuple[int, ...]]] = {
    "dit": (DiT(width=16, depth=2, heads=2, dropout=0.2), (1, 4, 4)),
    "mlp": (MLP(width=16, depth=2, dropout=0.2), (3,)),
    "unet": (UNet(width=8, multipliers=(1, 2), depth=1, heads=2, dropout=0.2), (1, 4, 4)),
}
ROWS = 16


def teacher(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    return 0.3 * x


def loss_and_gradients(
    objective: Objective, net: nn.Module, shape: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-sample loss and gradients, in float64, half-way through the training."""
    g = torch.Generator().manual_seed(3)
    x, eps = (torch.randn(ROWS, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.arange(ROWS) % 10
    frozen_copy = copy.deepcopy(net).requires_grad_(False).eval()
    learned = objective.auxiliary_module()
    nets = Nets(
        online=net,
        ema=frozen_copy,
        teacher=teacher if objective.needs_teacher else None,
        auxiliary=None if learned is None else learned.double(),
        snapshot=frozen_copy,
        companion=frozen_copy,
    )
    batch = Batch(x, y, y_true=y, eps=eps if objective.needs_pairs else None)
    torch.manual_seed(4)  # dropout
    loss = objective.loss(nets, batch, Progress(500, 1000), g).per_sample
    net.zero_grad()
    loss.sum().backward()
    none = torch.zeros(())
    return loss, {n: none if p.grad is None else p.grad for n, p in net.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_loss_and_gradients_are_the_same(name: str, kind: str, awake: Awake) -> None:
    settings, shape = KINDS[kind]
    objective = OBJECTIVES[name]
    net = awake(settings, shape, objective.uses_jump)
    assert net.checkpointing is False
    loss, gradients = loss_and_gradients(objective, net, shape)
    net.checkpointing = True
    again, recomputed = loss_and_gradients(objective, net, shape)
    assert net.checkpointing is True  # put back by whoever took a tangent
    torch.testing.assert_close(again, loss, rtol=1e-10, atol=1e-12)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(recomputed[parameter], gradient, rtol=1e-8, atol=1e-10)
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_are_run_twice_and_only_if_a_gradient_is_wanted(
    kind: str, awake: Awake, inputs: Inputs
) -> None:
    settings, shape = KINDS[kind]
    net = awake(settings, shape)
    calls: list[int] = []
    block = (net.blocks if kind != "unet" else net.down)[0]
    block.register_forward_pre_hook(lambda module, given: calls.append(1))
    net.checkpointing = True
    with torch.no_grad():
        net(*inputs(shape))
    assert len(calls) == 1
    net(*inputs(shape)).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_activations_are_kept(kind: str, awake: Awake, inputs: Inputs) -> None:
    settings, shape = {
        "dit": (DiT(width=16, depth=6, heads=2), (1, 4, 4)),
        "mlp": (MLP(width=16, depth=12), (3,)),
        "unet": (UNet(width=8, multipliers=(1, 2), depth=3, heads=2), (1, 4, 4)),
    }[kind]
    net = awake(settings, shape)
    blocks = [*net.down, *net.middle, *net.up] if kind == "unet" else net.blocks
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def kept() -> int:
        """Bytes of all tensors, but for the parameters, that wait for the backward pass."""
        waiting: dict[int, Tensor] = {}  # by storage; held, so that no storage is used twice

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                waiting[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        def keep_inputs(block: nn.Module, given: tuple[Tensor, ...]) -> None:
            if net.checkpointing:  # which holds them where the hooks on saved tensors cannot see
                for tensor in given:
                    keep(tensor)

        handles = [block.register_forward_pre_hook(keep_inputs) for block in blocks]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            assert net(*inputs(shape)).requires_grad
        for handle in handles:
            handle.remove()
        return sum(tensor.untyped_storage().nbytes() for tensor in waiting.values())

    all_of_them = kept()
    net.checkpointing = True
    assert kept() < all_of_them / 2


def test_the_value_of_a_tangent_is_recomputed_and_its_gradient_right(
    awake: Awake, inputs: Inputs
) -> None:
    settings, shape = KINDS["dit"]
    net = awake(settings, shape)
    x, t, d, y = inputs(shape)
    given = (x, t), (torch.ones_like(x), torch.ones_like(t))
    seen = []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        torch.manual_seed(5)
        value, tangent = jvp(net, lambda x, t: net(x, t, d, y), *given)
        (value * tangent).sum().backward()
        seen.append((value, tangent, net.embed.weight.grad.clone()))
    for plain, recomputed in zip(*seen, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-10)
