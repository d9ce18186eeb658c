"""Muon for the matrices of hidden layers, AdamW for all other parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fewstep.errors import UserError, check_choice, check_fields, check_range
from fewstep.experiments.distributed.sharded_tensors import gathered, sharded_like
from fewstep.experiments.optimisers.adam import AdamW, call_fused
from fewstep.experiments.optimisers.base import OPTIMISERS, Update

MATRIX = "matrix"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
ADJUSTMENTS = ("match_rms_adamw", "original")


@OPTIMISERS.register("muon")
@dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all else.

    A matrix moves along its momentum with all singular values set to about 1. Matrices are the
    weights of every nn.Linear and every convolution with one group (in_channels times kernel as the
    second dimension) inside an nn.ModuleList of the network: of the blocks of a DiT and an MLP, and
    of the stages of a U-Net. AdamW takes what is outside (embeddings of image, time and label,
    first and last layer), biases, norms, embedding tables and the objective's auxiliary module. A
    layer that computes queries, keys and values together is one matrix. Matrices are orthogonalised
    in training.precision: bfloat16, in which torch does it always, is fast on GPUs and very slow on
    most CPUs.

    Attributes:
        momentum: decay of the mean gradient. nesterov: look one step ahead, as torch does.
        ns_steps: Newton-Schulz iterations; 5 bring singular values of at least 0.002 of the
            Frobenius norm into 0.68 to 1.21.
        adjust_lr: factor on the rate of a matrix of shape (A, B). match_rms_adamw:
            0.2 sqrt(max(A, B)), updates as large as AdamW's (Liu et al. 2025), so that one
            training.lr serves both. original: sqrt(max(1, A / B)) (Jordan et al. 2024).
        adamw_lr: AdamW's rate over training.lr.

    training.weight_decay is decoupled, and the same for both. training.betas and training.eps are
    AdamW's. With training.parallel=fsdp every process gathers every matrix's momentum and
    orthogonalises it.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr: str = ADJUSTMENTS[0]
    adamw_lr: float = 1.0

    def __post_init__(self) -> None:
        group = "training.optimiser"
        check_range(f"{group}.momentum", self.momentum, 0, 0.999999)
        check_range(f"{group}.ns_steps", self.ns_steps, 1, 99)
        check_choice(f"{group}.adjust_lr", self.adjust_lr, ADJUSTMENTS)
        check_fields(group, self, "adamw_lr", 0, open_low=True)

    def rules(self, network: nn.Module) -> Mapping[Tensor, str]:
        lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
        hidden = {module for blocks in lists for module in blocks.modules()}
        layers = [m for m in network.modules() if m in hidden and _is_matrix(m)]
        if not layers:
            raise UserError(
                "training.optimiser=muon needs a network with linear layers or convolutions in an "
                "nn.ModuleList, and this backbone has none: choose adamw, adam or radam"
            )
        return {p: MATRIX for m in layers for name, p in m.named_parameters() if name == "weight"}

    def slots(self, parameter: Tensor, rule: str) -> dict[str, Tensor]:
        if rule == MATRIX:
            return {"momentum": torch.zeros_like(parameter)}
        return super().slots(parameter, rule)

    def step(self, update: Update) -> None:
        if update.rule != MATRIX:
            call_fused(adamw, update, update.lr * self.adamw_lr)
            return
        means = update.slots["momentum"]
        for p, gradient, mean in zip(update.parameters, update.gradients, means, strict=True):
            mean.lerp_(gradient, 1 - self.momentum)
            direction = gradient.lerp(mean, self.momentum) if self.nesterov else mean
            matrix = gathered(direction.bfloat16() if update.half else direction).flatten(1)
            change = orthogonalised(matrix, self.ns_steps).reshape(p.shape).to(p.dtype)
            p.mul_(1 - update.lr * update.weight_decay)
            p.add_(sharded_like(p, change), alpha=-update.lr * self.lr_factor(*matrix.shape))

    def lr_factor(self, rows: int, columns: int) -> float:
        """Of the learning rate of a matrix."""
        if self.adjust_lr == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """About U V^T of ``matrix`` = U S V^T (A, B).

    Each step maps each singular value s, at first at most 1, to a s + b s^3 + c s^5 (Jordan et al.
    2024). The coefficients raise small ones fast, and leave all near 1 rather than at 1.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
