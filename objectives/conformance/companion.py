"""Checks of ``Objective.companion_loss``: those of a loss, with the companion in training."""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.objectives.conformance import sampling, training
from fewstep.objectives.conformance.case import END, GENERATED, Case, Result, g, require
from fewstep.objectives.core.base import Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.gaussian import GaussianFlow


@dataclass(frozen=True)
class CompanionCase(Case):
    """The companion of a network whose samples are N(0, GENERATED^2 I), as what is trained."""

    @cached_property
    def flow(self) -> GaussianFlow:
        return GaussianFlow(self.path, GENERATED)

    @cached_property
    def optimum(self) -> Net | None:
        return self.objective.gaussian_companion(self.flow)

    @cached_property
    def generator(self) -> Net | None:
        """The network whose samples it learns from."""
        return self.objective.gaussian_optimum(self.flow, END)

    @property
    def trains_auxiliary(self) -> bool:
        return False  # the network's loss does

    def companion_of(self, net: Net) -> Net | None:
        return None  # it is what is trained

    def loss(self, nets: Nets, batch: Batch, seed: int, progress: Progress = END) -> Loss:
        generator = self.generator or nets.online
        given = copy.copy(nets)  # whatever else it asks for
        given.online, given._companion = generator, nets.online
        return self.objective.companion_loss(given, batch, progress, g(seed))


def companion(case: Case) -> Result:
    """Of the companion's loss: per-sample, gradients, minimum, labels, determinism, float32."""
    if not case.objective.companion_updates:
        return None, "it has none"
    own = CompanionCase(case.objective)
    _require_constant(own)
    checks = (training.rows, training.gradients, sampling.labels, sampling.determinism)
    for check in (*checks, training.float32, training.stationary):
        passed, detail = check(own)
        if passed is not True:
            break
    return passed, detail


def _require_constant(case: CompanionCase) -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def generator(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return scale * case.test_net(x, t, d, y)

    nets = case.nets(generator, companion=case.test_net)
    loss = case.objective.companion_loss(nets, case.batch(64, 0), END, g(0)).per_sample
    require(not loss.requires_grad, "a gradient reaches the network through its samples")
