"""An optimiser at work: which parameters it updates together, and its state in the open."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from fewstep.experiments.config.settings import Training
from fewstep.experiments.optimisers import Optimiser, Update


class Updater:
    """Updates ``groups`` of parameters, each of which one kernel can take, by ``optimiser``.

    ``rules``: of the optimiser, by parameter. ``auxiliary``: parameters that have a peak learning
    rate of their own. ``state``: by parameter and slot, once it has been updated.
    """

    def __init__(
        self,
        optimiser: Optimiser,
        training: Training,
        groups: Sequence[Sequence[nn.Parameter]],
        rules: Mapping[Tensor, str] | None = None,
        auxiliary: Collection[nn.Parameter] = (),
    ) -> None:
        self.optimiser, self.training = optimiser, training
        self.rules = {} if rules is None else rules
        apart = set() if training.auxiliary_lr is None else set(auxiliary)
        self.groups = [part for group in groups for part in self._split(group, apart)]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def _split(
        self, group: Sequence[nn.Parameter], apart: Collection[nn.Parameter]
    ) -> list[tuple[str, bool, list[nn.Parameter]]]:
        parts: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for p in group:
            parts.setdefault((self.rules.get(p, ""), p in apart), []).append(p)
        return [(*kind, parameters) for kind, parameters in parts.items()]

    @torch.no_grad()
    def step(self, lr: float, auxiliary_lr: float | None = None) -> None:
        """Update the parameters that have a gradient."""
        beta1, beta2 = self.training.betas
        for rule, is_auxiliary, group in self.groups:
            updated: list[Tensor] = [p for p in group if p.grad is not None]
            if not updated:
                continue
            states = [self._slots(p) for p in updated]
            update = Update(
                rule,
                updated,
                [p.grad for p in updated if p.grad is not None],
                {name: [state[name] for state in states] for name in states[0]},
                lr if auxiliary_lr is None or not is_auxiliary else auxiliary_lr,
                (beta1, beta2),
                self.training.eps,
                self.training.weight_decay,
                self.training.precision == "bfloat16",
            )
            self.optimiser.step(update)

    def _slots(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = self.fresh(parameter)
        return self.state[parameter]

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """The slots of a parameter before its first update."""
        return self.optimiser.slots(parameter, self.rules.get(parameter, ""))

    def saved(self, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The state of ``named`` parameters, by the names that checkpoints have for it."""
        return {
            f"optimiser.{slot}.{name}": value
            for name, parameter in named.items()
            for slot, value in self.state.get(parameter, {}).items()
        }

    def restore(
        self,
        named: Mapping[str, nn.Parameter],
        tensors: Mapping[str, Tensor],
        distribute: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """The opposite of ``saved``; ``distribute(whole, like)``: see ``load_weights``."""
        for name, parameter in named.items():
            slots = self.fresh(parameter)
            keys = {slot: f"optimiser.{slot}.{name}" for slot in slots}
            if all(key in tensors for key in keys.values()):  # else it has never had a gradient
                self.state[parameter] = {
                    slot: distribute(tensors[keys[slot]].to(like.device), like)
                    for slot, like in slots.items()
                }
