"""Whether the groups of a run's settings fit together."""

from typing import TYPE_CHECKING

import torch

from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.experiments.config.run_config import RunConfig


def check_together(config: "RunConfig") -> None:
    """``UserError`` for settings of one group that another cannot use."""
    _check_rates(config)
    _check_jump_blocks(config)
    _check_groups(config)


def _check_rates(config: "RunConfig") -> None:
    training, objective = config.training, config.objective
    name = config.values["objective"]["name"]
    if (lr := training.companion_lr) is not None and not objective.companion_updates:
        raise UserError(
            f"training.companion_lr={lr:g}: objective {name!r} has no companion network to "
            f"train; leave it at null"
        )
    if (lr := training.auxiliary_lr) is None:
        return
    with torch.random.fork_rng(devices=[]):  # the host program's generator stays as it is
        module = objective.auxiliary_module()
    if module is None or not any(True for _ in module.parameters()):
        raise UserError(
            f"training.auxiliary_lr={lr:g}: objective {name!r} has no auxiliary module to "
            f"train; leave it at null"
        )


def _check_jump_blocks(config: "RunConfig") -> None:
    blocks = getattr(config.backbone, "jump_blocks", None)
    if blocks is not None and config.objective.jump_is_flag:
        raise UserError(
            f"backbone.jump_blocks={blocks} needs jump lengths, objective "
            f"{config.values['objective']['name']!r} has none: leave it at null"
        )
    if blocks is not None and blocks >= (depth := config.values["backbone"]["depth"]):
        raise UserError(
            f"backbone.jump_blocks must be less than backbone.depth={depth}, for the others to be "
            f"told t, got {blocks}"
        )


def _check_groups(config: "RunConfig") -> None:
    size, rows = config.objective.group_size, config.training.batch_size
    if rows % size:
        raise UserError(
            f"training.batch_size must be a multiple of {size}, the rows that "
            f"{config.objective.title} groups (objective.group_size), got {rows}"
        )
