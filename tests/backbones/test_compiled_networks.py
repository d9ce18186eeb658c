"""torch.compile takes every network whole and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones import MLP, Backbone, DiT, UNet

Awake = Callable[..., nn.Module]
Inputs = Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor, Tensor]]

OPTIONS = {"time_embedding": "fourier", "jump_embedding": "linear", "modulation": "double"}
KINDS: dict[str, tuple[Backbone, tuple[int, ...]]] = {
    "dit": (DiT(width=16, depth=1, heads=2), (1, 4, 4)),
    "dit with options": (
        DiT(
            width=16,
            depth=1,
            heads=2,
            norm="rms",
            qk_norm=True,
            attention="math",
            attention_scale="per_dim",
            **OPTIONS,
        ),
        (1, 4, 4),
    ),
    "mlp": (MLP(width=16, depth=1), (3,)),
    "unet": (UNet(width=8, multipliers=(1, 2), depth=1), (1, 4, 4)),
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [
        ("dit", False),
        ("dit with options", True),
        ("mlp", True),
        pytest.param("unet", False, marks=pytest.mark.slow),
    ],
)
def test_in_one_graph(kind: str, checkpointing: bool, awake: Awake, inputs: Inputs) -> None:
    # aot_eager captures forward and backward as the default compiler does, and spares the minutes
    # that the code generation of a U-Net takes
    settings, shape = KINDS[kind]
    net = awake(settings, shape)
    net.checkpointing = checkpointing
    given = inputs(shape)
    plain = net(*given)
    plain.square().sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(*given)
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, plain)
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)
