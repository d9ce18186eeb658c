"""AdamW, Adam and RAdam: torch's kernels, and their state in the open.

The classes of ``torch.optim`` would import torch's compiler, though nothing is compiled: each
process of a run would wait a second for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.radam import radam

from fewstep.experiments.optimisers.base import OPTIMISERS, Update

FUSED = ("cpu", "cuda")


def moments(parameter: Tensor, fused: bool) -> dict[str, Tensor]:
    """The slots of all three: number of updates, mean gradient, mean squared gradient.

    Kernels that are not fused take the number on the CPU.
    """
    step = torch.zeros((), device=parameter.device if fused else "cpu")
    return {
        "step": step,
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def call(kernel: Any, update: Update, lr: float, **options: Any) -> None:
    """Have one of torch's kernels make the update."""
    kernel(
        list(update.parameters),
        list(update.gradients),
        exp_avgs=list(update.slots["exp_avg"]),
        exp_avg_sqs=list(update.slots["exp_avg_sq"]),
        state_steps=list(update.slots["step"]),
        beta1=update.betas[0],
        beta2=update.betas[1],
        lr=lr,
        weight_decay=update.weight_decay,
        eps=update.eps,
        maximize=False,
        **options,
    )


def call_fused(kernel: Any, update: Update, lr: float) -> None:
    """As ``call``, each group of parameters in one kernel where the device has it."""
    fused = all(p.device.type in FUSED for p in update.parameters)
    call(kernel, update, lr, max_exp_avg_sqs=[], amsgrad=False, fused=fused)


@OPTIMISERS.register("adamw")
@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, w <- w - lr weight_decay w (Loshchilov & Hutter 2019)."""

    def rules(self, network: nn.Module) -> Mapping[Tensor, str]:
        return {}

    def slots(self, parameter: Tensor, rule: str) -> dict[str, Tensor]:
        return moments(parameter, fused=parameter.device.type in FUSED)

    def step(self, update: Update) -> None:
        call_fused(adamw, update, update.lr)


@OPTIMISERS.register("adam")
@dataclass(frozen=True)
class Adam(AdamW):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient, g + weight_decay w."""

    def step(self, update: Update) -> None:
        call_fused(adam, update, update.lr)


@OPTIMISERS.register("radam")
@dataclass(frozen=True)
class RAdam(AdamW):
    """Adam with a rectified variance (Liu et al. 2020); weight decay is added to the gradient."""

    def slots(self, parameter: Tensor, rule: str) -> dict[str, Tensor]:
        return moments(parameter, fused=False)

    def step(self, update: Update) -> None:
        call(radam, update, update.lr)
