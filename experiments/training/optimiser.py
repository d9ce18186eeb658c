"""AdamW: torch's kernels, and its state in the open, as a checkpoint takes it.

``torch.optim.AdamW`` would import torch's compiler, though nothing is compiled: each process of a
run would wait a second for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fewstep.experiments.config.settings import Training

SLOTS = ("step", "exp_avg", "exp_avg_sq")


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019), each group of parameters in one kernel.

    ``state``: by parameter and slot, once it has been updated; ``step`` counts its updates.
    """

    def __init__(
        self, groups: Sequence[Sequence[nn.Parameter]], training: Training, device: torch.device
    ) -> None:
        self.groups, self.training = groups, training
        self.fused = device.type in ("cpu", "cuda")
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters that have a gradient."""
        for group in self.groups:
            updated: list[Tensor] = [p for p in group if p.grad is not None]
            slots = {name: [self._slots(p)[name] for p in updated] for name in SLOTS}
            adamw(
                updated,
                [p.grad for p in updated if p.grad is not None],
                exp_avgs=slots["exp_avg"],
                exp_avg_sqs=slots["exp_avg_sq"],
                max_exp_avg_sqs=[],
                state_steps=slots["step"],
                fused=self.fused,
                amsgrad=False,
                beta1=self.training.betas[0],
                beta2=self.training.betas[1],
                lr=lr,
                weight_decay=self.training.weight_decay,
                eps=self.training.eps,
                maximize=False,
            )

    def _slots(self, p: Tensor) -> dict[str, Tensor]:
        if p not in self.state:
            # the kernels of other devices take a counter on the CPU
            step = torch.zeros((), device=p.device if self.fused else "cpu")
            moments = {name: torch.zeros_like(p) for name in SLOTS[1:]}
            self.state[p] = {"step": step, **moments}
        return self.state[p]
