"""``fewstep sweep NAME --smoke``: two training steps of every member on made-up data."""

from collections.abc import Iterator

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.smoke import Smoke, smoke
from fewstep.experiments.training.teacher import config_of, teacher_directory
from fewstep.experiments.validation import Missing, check
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.definition.sweep import Sweep


def smokes(sweep: Sweep, memory: int | None = None) -> Iterator[tuple[Member, Smoke]]:
    """Try each chosen member, once for all its seeds; its data and its teacher need not exist.

    ``memory``: as of ``experiments.smoke.smoke``. Raises ``UserError`` where members cannot be
    composed; what fails later is in the ``Smoke``.
    """
    members = sweep.members()
    if not members:
        raise UserError(f"sweep {sweep.name} has no runs")
    to_come = {member.config.key: member.config for member in [*sweep.whole(), *members]}
    for member in members:
        if member.seed != sweep.seeds[0]:
            continue
        try:
            check([member.config], to_come, Missing())
            teachers = tuple(_teachers(member.config, to_come))
        except UserError as error:
            yield member, Smoke(error=str(error))
        else:
            yield member, smoke(member.config, teachers, memory)


def _teachers(config: RunConfig, to_come: dict[str, RunConfig]) -> Iterator[RunConfig]:
    """The run's teacher, its teacher's, and so on."""
    while (directory := teacher_directory(config)) is not None:
        config = to_come.get(directory.key) or config_of(directory)
        yield config
