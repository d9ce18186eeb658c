"""The optimiser, against torch's own class."""

from __future__ import annotations

import torch
from torch import nn

from fewstep.experiments.config.settings import Training
from fewstep.experiments.training.optimiser import AdamW


def test_it_is_adamw_to_the_last_bit() -> None:
    """With a parameter that has no gradient at first, and one that never has."""
    torch.manual_seed(0)
    training = Training(weight_decay=0.1, betas=(0.8, 0.97), eps=1e-6)
    ours = [nn.Parameter(torch.randn(5, 3)) for _ in range(4)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    groups = [ours[:2], ours[2:]]
    optimiser = AdamW(groups, training, torch.device("cpu"))
    reference = torch.optim.AdamW(theirs, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.1, fused=True)
    for step in range(6):
        lr = 0.1 / (step + 1)
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = torch.randn(5, 3) if i < step and i < 3 else None
            q.grad = None if p.grad is None else p.grad.clone()
        optimiser.step(lr)
        reference.param_groups[0]["lr"] = lr
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        state = optimiser.state.get(p, {})
        assert state.keys() == reference.state[q].keys()
        assert all(torch.equal(value, reference.state[q][name]) for name, value in state.items())
    assert [int(s["step"]) for s in optimiser.state.values()] == [5, 4, 3]
