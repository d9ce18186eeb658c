"""A network trained beside the main one (``Objective.companion_loss``), in turns with it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.distributed.data_parallel import SingleProcess
from fewstep.experiments.training.checkpoint import Checkpoint
from fewstep.experiments.training.network import load_weights
from fewstep.experiments.training.optimiser import Updater


class Companion:
    """``net``, shared among processes as ``parallel`` says, and the optimiser that updates it.

    ``forward`` is how losses call it: compiled, if the run asks for that. ``named``: its
    parameters, by the names that checkpoints know them by.
    """

    def __init__(self, config: RunConfig, parallel: SingleProcess, net: nn.Module) -> None:
        self.net = parallel.wrap(net)
        self.named = dict(self.net.named_parameters(prefix="companion"))
        parallel.watch(self.net, None)
        groups, rules = parallel.groups(self.net, None), config.optimiser.rules(self.net)
        self.optimiser = Updater(config.optimiser, config.training, groups, rules)
        self.forward: Any = torch.compile(self.net) if config.training.compile else self.net

    def restore(self, saved: Checkpoint, distribute: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Weights and optimiser as they were saved; ``distribute``: see ``load_weights``."""
        load_weights(self.net, saved, "companion", distribute)
        self.optimiser.restore(self.named, saved.tensors, distribute)


def take_turns(trained: nn.Module, constant: nn.Module) -> None:
    """From now on gradients reach the weights of ``trained`` alone, and it alone drops features.

    They still go through ``constant`` to its input, which costs half as much.
    """
    trained.train().requires_grad_(True)
    constant.eval().requires_grad_(False)
