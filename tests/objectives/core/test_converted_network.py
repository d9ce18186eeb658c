"""A network on another path, in closed form: the flow of Gaussian data is the flow there, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewstep.objectives import FlowMatching, GaussianFlow, LinearPath, ProbabilityPath, TrigPath
from fewstep.objectives.conformance.case import STD, rel_error
from fewstep.objectives.core.converted_network import ConvertedNetwork
from fewstep.objectives.core.tangent import jvp

PATHS = [LinearPath(), LinearPath(0.05), TrigPath(0.5), TrigPath(1.7)]
X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Optimum(nn.Module):
    """What a flow of Gaussian data learns on ``path``; keeps the jump length it was given."""

    def __init__(self, path: ProbabilityPath) -> None:
        super().__init__()
        self.flow, self.path, self.d = GaussianFlow(path, STD), path, torch.zeros(0)
        self.checkpointing = False

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if d is not None:
            self.d = d
        std = self.path.noise_std
        return self.flow.velocity(std * x, t) / std


@pytest.mark.parametrize("target", PATHS, ids=str)
@pytest.mark.parametrize("source", PATHS, ids=str)
def test_an_optimum_is_the_optimum_on_the_other_path(
    source: ProbabilityPath, target: ProbabilityPath
) -> None:
    # not nearer to the data than the source's path goes
    t = target.t_max * torch.linspace(0.1, 1, 64, dtype=torch.float64)
    x = target.mix(X, EPS, t) / target.noise_std
    net, expected = ConvertedNetwork(Optimum(source), source, target), Optimum(target)
    assert rel_error(net(x, t), expected(x, t)) < 1e-9
    towards = (EPS, torch.ones_like(t))
    for made, known in zip(
        jvp(net, net, (x, t), towards), jvp(expected, expected, (x, t), towards), strict=True
    ):
        assert rel_error(made, known) < 1e-8


def test_a_jump_length_is_its_callers_or_fixed() -> None:
    inner, t = Optimum(LinearPath()), torch.full((64,), 0.5, dtype=torch.float64)
    for target in (LinearPath(), TrigPath(0.5)):
        ConvertedNetwork(inner, LinearPath(), target)(X, t, t / 4)
        assert torch.equal(inner.d, t / 4)
        ConvertedNetwork(inner, LinearPath(), target, 0.0625)(X, t)
        assert torch.equal(inner.d, torch.full_like(t, 0.0625))


def test_it_recomputes_activations_where_its_network_does() -> None:
    inner = Optimum(LinearPath())
    net = ConvertedNetwork(inner, LinearPath(), TrigPath(0.5))
    net.checkpointing = True
    assert inner.checkpointing
    assert net.checkpointing
    assert not hasattr(ConvertedNetwork(nn.Identity(), LinearPath(), LinearPath()), "checkpointing")


def test_a_step_on_a_path_keeps_data_and_noise() -> None:
    """DDIM's step: exact in one, where the velocity is that of one x and eps."""
    for path in PATHS:
        t = path.t_max * torch.linspace(0.2, 1, 64, dtype=torch.float64)
        v = path.velocity(X, EPS, t)
        there = path.step(path.mix(X, EPS, t), v, t, t / 3)
        assert rel_error(there, path.mix(X, EPS, t / 3)) < 1e-12
        again = ProbabilityPath.step(path, path.mix(X, EPS, t), v, t, t / 3)
        assert rel_error(again, there) < 1e-12


def test_one_step_of_a_flow_on_trigflow_is_its_estimate_of_the_data() -> None:
    """The mean of the data, as on the linear path: there is no better one."""
    objective = FlowMatching(interpolant="trig", sigma_d=0.5)
    flow = GaussianFlow(objective.path, STD)
    net = objective.gaussian_optimum(flow, None)  # type: ignore[arg-type]
    t = torch.linspace(0.1, 1.5, 64, dtype=torch.float64)
    x_t = objective.path.mix(X, EPS, t)
    data, _ = objective.path.data_and_noise(x_t, flow.velocity(x_t, t), t)
    assert rel_error(objective.denoise(net, x_t, t, None), data) < 1e-12
    one = objective.sample(net, EPS, times=1)
    assert one.abs().max() < 1e-7  # the mean, given noise alone
