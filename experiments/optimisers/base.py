"""What an optimiser is: settings, what it keeps of a parameter, and how it updates parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fewstep.registry import Registry


@dataclass(frozen=True)
class Update:
    """Parameters to be updated together, by one rule and at one learning rate.

    Attributes:
        rule: one of the optimiser's rules; "" is the usual one.
        parameters, gradients: in the same order and of the same shapes. With training.parallel=fsdp
            they are kept in parts (DTensor).
        slots: what the optimiser keeps, by name and in the order of the parameters.
        lr: learning rate of this step. betas, eps, weight_decay: as in the settings ``training``.
        half: whether training.precision is bfloat16; weights and slots are float32 all the same.
    """

    rule: str
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    slots: Mapping[str, Sequence[Tensor]]
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    half: bool = False


class Optimiser(Protocol):
    """A frozen dataclass of settings. All that changes from step to step is in the slots."""

    def rules(self, network: nn.Module) -> Mapping[Tensor, str]:
        """The parameters of ``network`` that another rule than the usual one, "", updates.

        Raises ``UserError``: the network is nothing for this optimiser. It may be on the meta
        device.
        """
        ...

    def slots(self, parameter: Tensor, rule: str) -> dict[str, Tensor]:
        """What is kept of a parameter, by name, before its first update; a checkpoint takes it.

        A slot is on the parameter's device and kept in parts as the parameter is
        (``torch.zeros_like``), or a whole tensor on any device.
        """
        ...

    def step(self, update: Update) -> None:
        """Change parameters and slots in place; called without gradient tracking."""
        ...


OPTIMISERS: Registry[Optimiser] = Registry(
    "optimiser", "fewstep.optimisers", methods=("rules", "slots", "step")
)
