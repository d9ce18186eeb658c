"""Guidance as an affine combination of two calls, in an interval."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.objectives import Guided, LinearPath, ProbabilityPath, TrigPath
from fewstep.objectives.conformance.case import CallRecorder
from fewstep.objectives.core.guidance import guided

NONE = 10.0  # what the network below adds without a label


def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    return x + (NONE if y is None else y[:, None])


X, Y = torch.ones(4, 2), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_from_no_label_to_label(scale: float) -> None:
    found = Guided(net, scale)(X, torch.zeros(4), None, Y)
    torch.testing.assert_close(found, X + NONE + scale * (Y[:, None] - NONE))


def test_guidance_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="labels"):
        Guided(net, 2.0)(X, torch.zeros(4))


def test_an_interval_without_a_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"interval \(0.2, 0.8\) needs the path"):
        Guided(net, 2.0, interval=(0.2, 0.8))


def test_jump_reaches_both_calls() -> None:
    record, d = CallRecorder(net), torch.full((4,), 0.5)
    Guided(record, 2.0)(X, torch.ones(4), d, Y)
    assert all(c.d is d for c in record.calls)
    assert [c.y is None for c in record.calls] == [False, True]


@pytest.mark.parametrize(
    ("path", "t"),
    [(LinearPath(), 0.3), (TrigPath(0.5), math.atan2(0.3, 0.5 * 0.7))],
    ids=["linear", "trig"],
)
def test_interval_is_in_shares_of_noise(path: ProbabilityPath, t: float) -> None:
    """The same noise level, 0.3, lies in the same intervals on every path."""
    times = torch.full((4,), t, dtype=torch.float64)
    for interval, calls in [((0.2, 0.4), 2), ((0.31, 1.0), 1), ((0.0, 0.29), 1), ((0.0, 1.0), 2)]:
        record = CallRecorder(net)
        found = Guided(record, 2.0, path, interval)(X, times, None, Y)
        assert len(record.calls) == calls  # NFE 1 outside
        inside = X + NONE + 2 * (Y[:, None] - NONE)
        torch.testing.assert_close(found, inside if calls == 2 else X + Y[:, None])


@pytest.mark.parametrize("sigma_d", [0.3, 0.5, 1.0])
def test_an_interval_up_to_1_has_the_first_step_in_it(sigma_d: float) -> None:
    path, record = TrigPath(sigma_d), CallRecorder(net)
    Guided(record, 2.0, path, (0.2, 1.0))(X, torch.full((4,), path.t_max), None, Y)
    assert len(record.calls) == 2


def test_interval_is_taken_row_by_row() -> None:
    t = torch.tensor([0.1, 0.2, 0.5, 0.6])
    found = Guided(net, 3.0, LinearPath(), (0.2, 0.5))(X, t, None, Y)
    acts = torch.tensor([False, True, True, False])[:, None]
    plain, strong = X + Y[:, None], X + NONE + 3 * (Y[:, None] - NONE)
    torch.testing.assert_close(found, torch.where(acts, strong, plain))


def test_scale_one_and_no_labels_cost_one_call() -> None:
    record = CallRecorder(net)
    Guided(record, 1.0)(X, torch.zeros(4), None, Y)
    assert len(record.calls) == 1
    assert guided(net, 1.0, Y) is net
    assert guided(net, 3.0, None) is net
    torch.testing.assert_close(guided(net, 0.0, Y)(X, torch.zeros(4), None, Y), X + NONE)
