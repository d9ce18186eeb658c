"""Networks around a network change what is counted and split, and no number."""

from __future__ import annotations

import torch

from fewstep.objectives.conformance.case import CallRecorder, nonlinear_test_net
from fewstep.objectives.core.wrappers import BatchedNet, CountedNet


def test_calls_are_counted() -> None:
    net, x = CountedNet(nonlinear_test_net), torch.ones(3, 2)
    for _ in range(3):
        net(x, torch.ones(3))
    assert net.calls == 3


def test_batches_are_split_and_put_together_again() -> None:
    x, t = torch.randn(7, 2), torch.rand(7)
    record, sizes = CallRecorder(nonlinear_test_net), []
    found = BatchedNet(record, 3, sizes.append)(x, t, t / 2, torch.arange(7))
    assert sizes == [3, 2, 2]
    assert torch.equal(found, nonlinear_test_net(x, t, t / 2))
    assert torch.equal(torch.cat([c.y for c in record.calls if c.y is not None]), torch.arange(7))
