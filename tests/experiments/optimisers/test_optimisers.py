"""The optimisers against torch's own classes, Muon's matrices against an SVD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import registered
from torch import Tensor, nn

from fewstep.backbones import BACKBONES
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.config.settings import Training
from fewstep.experiments.optimisers import OPTIMISERS, Muon
from fewstep.experiments.optimisers.muon import COEFFICIENTS, orthogonalised
from fewstep.experiments.training.optimiser import Updater
from fewstep.experiments.validation import check

SETTINGS: dict[str, Any] = {"betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1}
THEIRS = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "radam": (torch.optim.RAdam, {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", THEIRS)
def test_it_is_torchs_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    """With a parameter that has no gradient at first, and one that never has."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3, dtype=dtype)) for _ in range(4)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    updater = Updater(OPTIMISERS[name], Training(**SETTINGS), [ours[:2], ours[2:]])
    kind, options = THEIRS[name]
    reference = kind(theirs, **SETTINGS, **options)
    for step in range(9):  # the variance of RAdam is rectified from the sixth on
        lr = 0.1 / (step + 1)
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = torch.randn(5, 3, dtype=dtype) if i < step and i < 3 else None
            q.grad = None if p.grad is None else p.grad.clone()
        updater.step(lr)
        reference.param_groups[0]["lr"] = lr
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        state = updater.state.get(p, {})
        assert state.keys() == reference.state[q].keys()
        assert all(torch.equal(value, reference.state[q][name]) for name, value in state.items())
    assert [int(s["step"]) for s in updater.state.values()] == [8, 7, 6]


class Small(nn.Module):
    """All kinds of layers inside a list of blocks, and a first layer outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Embedding(5, 6)),
                nn.Conv2d(6, 2, 3),
                nn.Conv2d(4, 4, 3, groups=2),
            ]
        )


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"adjust_lr_fn": "match_rms_adamw"}),
        (
            {"momentum": 0.8, "nesterov": False, "ns_steps": 3, "adjust_lr": "original"},
            {"momentum": 0.8, "nesterov": False, "ns_steps": 3, "adjust_lr_fn": "original"},
        ),
    ],
    ids=["default", "other"],
)
def test_muon_is_torchs_to_the_last_bit_and_adamw_beside_it(
    settings: dict[str, Any], options: dict[str, Any]
) -> None:
    """torch orthogonalises in bfloat16, as we do with training.precision=bfloat16."""
    torch.manual_seed(0)
    network = Small().double()
    named = dict(network.named_parameters())
    optimiser = Muon(adamw_lr=0.3, **settings)
    rules = optimiser.rules(network)
    matrices = [name for name, p in named.items() if p in rules]
    assert matrices == ["blocks.0.0.weight", "blocks.1.weight"]  # of the second: (2, 54)
    training = Training(**SETTINGS, precision="bfloat16")
    updater = Updater(optimiser, training, [list(named.values())], rules)
    theirs = {
        name: nn.Parameter((p.flatten(1) if name in matrices else p).detach().clone())
        for name, p in named.items()
    }
    muon = torch.optim.Muon([theirs[n] for n in matrices], weight_decay=0.1, **options)
    rest = [q for n, q in theirs.items() if n not in matrices]
    adamw = torch.optim.AdamW(rest, **SETTINGS, fused=True)
    for step in range(4):
        lr = 0.1 / (step + 1)
        for name, p in named.items():
            p.grad = torch.randn_like(p)
            theirs[name].grad = p.grad.reshape(theirs[name].shape).clone()
        updater.step(lr)
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = lr, lr * 0.3
        muon.step()
        adamw.step()
    for name, p in named.items():
        assert torch.equal(p.flatten(), theirs[name].flatten()), name
        assert updater.state[p].keys() == (
            {"momentum"} if name in matrices else {"step", "exp_avg", "exp_avg_sq"}
        )


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalisation_maps_singular_values_alone(shape: tuple[int, int], steps: int) -> None:
    """U S V^T becomes U p(S / |S|) V^T; after 5 steps p is within the documented bounds."""
    g = torch.Generator().manual_seed(0)
    U, _, Vh = torch.linalg.svd(
        torch.randn(shape, generator=g, dtype=torch.float64), full_matrices=False
    )
    s = torch.logspace(0, -2.5, min(shape), dtype=torch.float64)
    p = s / s.norm()
    assert p.min() > 0.002
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        p = a * p + b * p**3 + c * p**5
    assert steps == 1 or 0.68 <= p.min() < p.max() <= 1.21
    found = orthogonalised(7 * U * s @ Vh, steps)
    torch.testing.assert_close(found, U * p @ Vh, rtol=0, atol=1e-12)
    assert not orthogonalised(torch.zeros(shape), steps).any()  # not NaN


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("dit_digits", (1, 8, 8), {"modulation", "qkv", "out", "up", "down"}),
        ("mlp", (2,), {"modulation", "up", "down"}),
        (
            "unet_digits",
            (1, 8, 8),
            {"first", "second", "shortcut", "modulation", "conv", "qkv", "out"},
        ),
    ],
)
def test_muon_takes_the_matrices_of_the_blocks(
    name: str, shape: tuple[int, ...], expected: set[str]
) -> None:
    """And AdamW what embeds x, t, d and y, the last layer, biases and norms."""
    network: nn.Module = replace(BACKBONES[name], depth=1).build(shape, 10, True)  # type: ignore[type-var]
    named = dict(network.named_parameters())
    rules = Muon().rules(network)
    matrices = {n for n, p in named.items() if p in rules}
    assert len(matrices) == len(rules)
    assert {n.split(".")[-2] for n in matrices} == expected
    blocks = ("blocks.", "down.", "middle.", "up.")
    assert all(n.startswith(blocks) and n.endswith("weight") for n in matrices)
    left = {n for n, p in named.items() if p.ndim > 1} - matrices
    assert not any(n.startswith(blocks) for n in left)
    assert {n.split(".")[0] for n in left} - {"modulation"} == {
        "condition", "unembed", "stem" if name == "unet_digits" else "embed",
    }  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """A backbone without blocks."""

    def build(self, shape: tuple[int, ...], num_classes: int, jump: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2))


def test_muon_refuses_a_network_without_blocks_before_a_run_is_written(tmp_path: Path) -> None:
    with registered("backbone", "flat", Flat()):
        given = ["data=gaussians", "backbone=flat", ("runs", str(tmp_path))]
        check([compose([*given, "training.optimiser=adam", "evaluation.steps=[]"])])
        with pytest.raises(UserError, match="needs a network with linear layers or convolutions"):
            check([compose([*given, "training.optimiser=muon", "evaluation.steps=[]"])])
    assert not list(tmp_path.iterdir())


def test_an_update_as_large_as_adamws() -> None:
    """match_rms_adamw: root mean square 0.2 lr for every shape, where AdamW's is 0.2 to 0.4."""
    for shape in ((64, 16), (16, 64), (32, 32)):
        layers = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])
        network = nn.Sequential(layers).double()
        (p,) = network.parameters()
        before: Tensor = p.detach().clone()
        optimiser = Muon()
        updater = Updater(optimiser, Training(), [[p]], optimiser.rules(network))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
        updater.step(0.01)
        size = float((p.detach() - before).square().mean().sqrt())
        assert size == pytest.approx(0.2 * 0.01, rel=0.25), shape
