"""DMF against its equations, and the network of which only the last blocks know the jump."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.dit import DiT
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.objectives import DecoupledMeanFlow, Net
from fewstep.objectives.conformance.case import CallRecorder, Case, nonlinear_test_net

ROWS = 64
H = 1e-5


class Level(nn.Module):
    """A log-variance that differs from time to time."""

    def forward(self, t: Tensor, d: Tensor) -> Tensor:
        return 0.3 * t - 0.7 * d + 0.2


def scaled(theta: Tensor) -> Net:
    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return theta * nonlinear_test_net(theta * x, t, d)

    return net


def by_hand(objective: DecoupledMeanFlow, net: Net, fixed: Net, calls: CallRecorder, x: Tensor):
    """The loss at the recorded inputs; targets by ``fixed``, the derivative by differences."""
    flow, jump = calls.calls
    assert jump.d is not None
    v_flow = (flow.x - x) / flow.t[:, None]  # x_t = x + t v
    v = (jump.x - x) / jump.t[:, None]
    ends = [fixed(jump.x + h * v, jump.t + h, jump.d + h) for h in (H, -H)]
    target = v - jump.d[:, None] * (ends[0] - ends[1]) / (2 * H)
    zero = torch.zeros_like(flow.t)
    terms = []
    for call, d, aim in ((flow, zero, v_flow), (jump, jump.d, target)):
        w = Level()(call.t, d)
        e = (net(call.x, call.t, d) - aim).square().mean(1)
        terms.append((e * (-w).exp() + objective.c).log() + w)
    return (terms[0] + terms[1]) / 2


def test_loss_and_gradient() -> None:
    objective, theta = DecoupledMeanFlow(), torch.tensor(1.1, dtype=torch.float64)
    case = Case(objective)
    batch, record = case.batch(ROWS, 0), CallRecorder(scaled(theta.requires_grad_()))
    nets = case.nets(record)
    nets._auxiliary = Level()
    loss = case.loss(nets, batch, 0).per_sample
    fixed = scaled(theta.detach())
    expected = by_hand(objective, fixed, fixed, record, batch.x)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    (found,) = torch.autograd.grad(loss.sum(), theta)
    near = [
        by_hand(objective, scaled(theta.detach() + h), fixed, record, batch.x).sum()
        for h in (1e-4, -1e-4)
    ]
    assert float(found) == pytest.approx(float(near[0] - near[1]) / 2e-4, rel=1e-4)


def test_times_are_those_of_the_authors_script() -> None:
    case, record = Case(DecoupledMeanFlow()), CallRecorder(nonlinear_test_net)
    case.loss(case.nets(record), case.batch(40_000, 0), 0)
    flow, jump = record.calls
    assert jump.d is not None
    assert flow.d is not None
    assert not flow.d.any()
    q, sums = flow.t.logit(), jump.t.logit() + (jump.t - jump.d).logit()
    assert float(q.mean()) == pytest.approx(0, abs=0.02)
    assert float(q.std()) == pytest.approx(1, abs=0.02)
    assert float(sums.mean()) == pytest.approx(0.4 - 1.2, abs=0.03)
    assert float(sums.std()) == pytest.approx(math.sqrt(2), abs=0.03)
    lengths = jump.t.logit() - (jump.t - jump.d).logit()  # |N(1.6, 2)|
    expected = torch.distributions.Normal(1.6, math.sqrt(2)).sample((400_000,)).abs().mean()
    assert float(lengths.mean()) == pytest.approx(float(expected), abs=0.03)


def test_guidance_moves_both_targets() -> None:
    objective = DecoupledMeanFlow(mixing=0.6, guidance_interval=(0.0, 0.7))
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    y = torch.zeros(ROWS, dtype=torch.int64)
    case.loss(case.nets(record), case.batch(ROWS, 0, y=y), 0)
    asked = [(call.grad, call.y is None) for call in record.calls]
    assert sorted(asked) == sorted([(True, False), (False, True), (False, False)] * 2)
    assert objective.step_cost() == pytest.approx(11 / 3)


def test_settings_of_mean_flow_that_it_has_not() -> None:
    with pytest.raises(UserError, match=r"objective\.p is MeanFlow's and must be 1, got 0"):
        DecoupledMeanFlow(p=0)


# ------------------------------------------------------------------------------------- the network

SETTINGS = DiT(width=32, depth=3, heads=2, patch=4, time_features=16, jump_blocks=2)
SHAPE = (1, 8, 8)


def stirred(net: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return net.double().eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return stirred(SETTINGS.build(SHAPE, 3, jump=True))


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, *SHAPE, generator=g, dtype=torch.float64)
    t = torch.linspace(0.4, 1, 5, dtype=torch.float64)
    return x, t, 0.7 * t, torch.tensor([0, 1, 2, 3, 0])


def test_without_a_jump_it_is_the_flows_network(network, inputs) -> None:
    x, t, _, y = inputs
    flow = SETTINGS.build(SHAPE, 3, jump=False).double().eval()
    flow.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x, t, torch.zeros_like(t), y), flow(x, t, y=y))


def test_the_first_blocks_see_no_jump_and_the_last_no_beginning(network, inputs) -> None:
    x, t, d, y = inputs
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, out: seen.append(i[1])) for b in network.blocks]
    network(x, t, d, y)
    network(x, t - d, torch.zeros_like(t), y)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen[1], seen[4])  # the time where the jump ends
    torch.testing.assert_close(seen[2], seen[5])
    assert not torch.allclose(seen[0], seen[3])
    assert not torch.allclose(network(x, t, d, y), network(x, t, d / 2, y))


def test_all_blocks_may_be_told_the_end_alone(inputs) -> None:
    x, t, d, y = inputs
    net = stirred(DiT(width=32, depth=3, heads=2, patch=4, jump_blocks=3).build(SHAPE, 3, True))
    torch.testing.assert_close(net(x, t, d, y), net(x, t - d, torch.zeros_like(t), y))


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"backbone\.jump_blocks must be at least 1, got 0"):
        DiT(width=32, depth=3, heads=2, jump_blocks=0)
    with pytest.raises(
        UserError, match=r"backbone\.jump_blocks must be less than backbone\.depth=3, .* got 3"
    ):
        compose(["data=digits", "backbone.jump_blocks=3", "objective=mean_flow"])
    given = ["data=digits", "backbone.jump_blocks=1", "objective=facm"]
    with pytest.raises(UserError, match=r"jump_blocks=1 needs jump lengths, objective 'facm'"):
        compose(given)
    with pytest.raises(ValueError, match="got d=None"):
        SETTINGS.build(SHAPE, 3, True)(torch.zeros(1, *SHAPE), torch.ones(1))
