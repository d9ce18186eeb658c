"""A network that starts from another run's weights: how it is called, and what it is filled with.

A run's backbone is called on the path of the objective it was first trained for, whatever the runs
that took it over since (``ConvertedNetwork``), so that the first estimate of the data is the
teacher's own. ``NetworkForm`` says how; checkpoints and results keep it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.store.json_files import Json
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.objectives.core.converted_network import ConvertedNetwork
from fewstep.registry import build

WEIGHTLESS = ("dropout", "attention")  # settings of a backbone, the kernel of attention the latter
OF_JUMPS = ("jump_embedding", "jump_blocks")  # settings that mean nothing to a network without d


@dataclass(frozen=True)
class NetworkForm:
    """How a backbone is called by a run.

    Attributes:
        objective: name and settings of the objective on whose path it is called.
        takes_d: whether it has a jump embedding.
        d: the jump length that an objective without jumps gives it; None for the objective's own.
        run, title: key and objective of the run that its first weights are from; None for random
            ones.
    """

    objective: Json
    takes_d: bool
    d: float | None = None
    run: str | None = None
    title: str | None = None

    @property
    def record(self) -> Json | None:
        """As checkpoints and results keep it; None of random first weights."""
        return asdict(self) if self.run is not None else None


def own_form(config: RunConfig) -> NetworkForm:
    """Of a run that starts from random weights."""
    return NetworkForm(config.values["objective"], config.objective.uses_jump)


def kept_form(config: RunConfig, record: Json | None) -> NetworkForm:
    """Of a run with that ``record`` in its checkpoint or result."""
    return own_form(config) if record is None else NetworkForm(**record)


def taken_over(config: RunConfig, key: str, teacher: RunConfig, its: NetworkForm) -> NetworkForm:
    """The form in which the run takes over the network of run ``key``.

    Raises ``UserError``: the run's objective cannot be expressed by it.
    """
    own, taught = config.objective, teacher.objective
    cannot = f"the network of {key} ({taught.title}) cannot become one of {own.title}"
    ignored = WEIGHTLESS if its.takes_d else (*WEIGHTLESS, *OF_JUMPS)
    if not same_weights(config.backbone, teacher.backbone, ignored):
        names = [c.values["backbone"]["name"] for c in (config, teacher)]
        differ = f"is {names[1]}, this run's is {names[0]}"
        if names[0] == names[1]:
            a, b = config.values["backbone"], teacher.values["backbone"]
            other = next(name for name in a if a[name] != b.get(name) and name not in ignored)
            differ = f"has {other}={b.get(other)}, this run's has {other}={a[other]}"
        raise UserError(f"training.init 'teacher': the backbone of {key} {differ}")
    if not own.uses_jump:
        d = its.d if its.d is not None or not its.takes_d else velocity_d(taught)
        return replace(its, d=d, run=key, title=taught.title)
    if its.d is not None:
        raise UserError(f"{cannot}: it is asked for d = {its.d:g} only")
    if taught.uses_jump:
        if own.jump_is_flag != taught.jump_is_flag:
            raise UserError(f"{cannot}: its d means something else")
        if own.path != taught.path:
            raise UserError(
                f"{cannot}: jumps cannot be taken over from {taught.path} to {own.path}"
            )
    return replace(its, takes_d=True, run=key, title=taught.title)


def same_weights(a: Backbone, b: Backbone, ignored: tuple[str, ...] = WEIGHTLESS) -> bool:
    """Whether the two are the same network, but for the settings that are ``ignored``."""
    shared: dict[str, Any] = {name: getattr(b, name) for name in ignored if hasattr(b, name)}
    if type(a) is not type(b):
        return False
    return bool(replace(a, **shared) == b)  # type: ignore[type-var]


def converted(network: nn.Module, config: RunConfig, form: NetworkForm) -> nn.Module:
    """``network``, of that form, as the run's objective calls it."""
    source, target = build(OBJECTIVES, form.objective).path, config.objective.path
    if source == target and form.d is None:
        return network
    return ConvertedNetwork(network, source, target, form.d)


def velocity_d(objective: Objective) -> float:
    """The jump length at which the objective's network gives a velocity."""
    asked: list[Tensor] = []

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert d is not None
        asked.append(d)
        return x

    objective.velocity(net, torch.zeros(1, 1), torch.full((1,), objective.path.t_max / 2), None)
    return float(asked[0])


def fill(network: nn.Module, teacher: nn.Module, key: str) -> None:
    """Give ``network`` the weights of ``teacher``; a jump embedding of its own says nothing yet.

    Raises ``UserError``: it has other weights that the teacher lacks.
    """
    inner, source = (
        n.network if isinstance(n, ConvertedNetwork) else n for n in (network, teacher)
    )
    missing = inner.load_state_dict(source.state_dict(), strict=False).missing_keys
    # images as they are have augmentation labels of 0, of which those weights make 0
    missing = [name for name in missing if not name.endswith("augmentation.weight")]
    if not missing:
        return
    silent: list[Any] = [m for m in inner.modules() if hasattr(m, "silence_jump")]
    for module in silent:
        module.silence_jump()
    if not silent:
        raise UserError(
            f"training.init 'teacher': run {key} has no weights for {missing[0]}, and the backbone "
            f"has no method silence_jump"
        )
