"""torch.compile under every objective: the eager losses and gradients, from compiled code alone.

What is compared is one training step after another; aot_eager captures and differentiates the
graphs as inductor does and then runs torch's own kernels, in a fraction of the time. Inductor's
own code is tried where a tangent is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.utils as dynamo
from torch import Generator, Tensor, nn

from fewstep.backbones import MLP, Backbone, DiT
from fewstep.objectives import OBJECTIVES, Batch, Nets, Objective, Progress

ROWS = 16
STEPS = 2
IMAGES = (DiT(width=16, depth=1, heads=2, patch=2, time_features=16), (1, 4, 4))
VECTORS = (MLP(width=16, depth=1, time_features=16), (2,))
END = Progress(999_999, 1_000_000)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled or counted by another test."""
    torch._dynamo.reset()
    dynamo.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], Any]:
    """torch.compile with aot_eager, here and wherever an objective compiles a part by itself."""
    compile_ = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_)
    return compile_


class Trained:
    """A network under an objective, with nothing at 0, and all that a loss may need."""

    def __init__(self, objective: Objective, kind: tuple[Backbone, tuple[int, ...]]) -> None:
        self.objective, (backbone, shape) = objective, kind
        self.net = stirred(backbone.build(shape, 3, objective.uses_jump), seed=0)
        self.frozen_copy = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.teacher = stirred(backbone.build(shape, 3, False), seed=1).requires_grad_(False)
        self.auxiliary = objective.auxiliary_module()
        self.uncompiled: list[str] = []  # calls of the network that ran op by op
        self.net.register_forward_pre_hook(self.watch)
        self.x = torch.randn(ROWS, *shape, generator=Generator().manual_seed(2))
        self.y = torch.arange(ROWS) % 4  # the last class is "no label"

    def watch(self, net: nn.Module, inputs: Any) -> None:
        if not torch.compiler.is_compiling():
            self.uncompiled.append("a call")

    def step(self, forward: Any, seed: int) -> list[Tensor]:
        """The loss of each row, and the gradient of each parameter, in step number ``seed``."""
        g = Generator().manual_seed(seed)
        eps = torch.randn(self.x.shape, generator=g)
        teacher = partial(self.teacher)
        other = self.frozen_copy
        nets = Nets(forward, other, teacher, self.auxiliary, other, teacher, other)
        batch = Batch(self.x, self.y, self.y % 3, eps if self.objective.needs_pairs else None)
        self.net.zero_grad(set_to_none=True)
        per_sample = self.objective.loss(nets, batch, END, g).per_sample
        per_sample.mean().backward()
        gradients = [p.grad.clone() for p in self.net.parameters() if p.grad is not None]
        return [per_sample.detach(), *gradients]


def stirred(net: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def as_eager(trained: Trained, compile_: Callable[[nn.Module], Any]) -> None:
    """The compiled steps are the eager ones, and every one of them ran compiled."""
    eager = [trained.step(trained.net, seed) for seed in range(STEPS)]
    assert trained.uncompiled
    trained.uncompiled.clear()
    assert not dynamo.counters["frames"]
    compiled = compile_(trained.net)
    graphs = []
    for seed in range(STEPS):
        torch.testing.assert_close(trained.step(compiled, seed), eager[seed], rtol=2e-4, atol=2e-5)
        graphs.append(dynamo.counters["stats"]["unique_graphs"])
    seen = dynamo.counters
    assert graphs[0] >= 1  # else torch went back to eager, and said nothing
    assert graphs == graphs[:1] * STEPS  # the second step is another draw, not another graph
    assert seen["frames"]["ok"] == seen["frames"]["total"]
    assert not seen["graph_break"]
    assert not seen["unimplemented"]
    assert not trained.uncompiled


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_compiled_step_is_the_eager_one(name: str, captured: Callable[..., Any]) -> None:
    as_eager(Trained(OBJECTIVES[name], IMAGES), captured)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_flow"])
def test_a_tangent_in_code_by_inductor(name: str) -> None:
    as_eager(Trained(OBJECTIVES[name], VECTORS), torch.compile)
