"""The ``slurm:`` field of a sweep, or ``slurm.KEY=VALUE`` on the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError, check_range
from fewstep.sweeps.settings import parse

OURS = (
    "array",
    "dependency",
    "output",
    "error",
    "signal",
    "open-mode",
    "requeue",
    "comment",
    "time",
)  # hours
"""sbatch options that are not the user's: a sweep would be lost with others."""

USUAL = ("partition", "account", "qos")


@dataclass(frozen=True)
class SlurmSettings:
    """How runs become jobs.

    Attributes:
        partition, account, qos, constraint, gres: as sbatch takes them; gres instead of the
            resources' gpus.
        hours: time limit of a job whose runs name none. A job that reaches it saves and is queued
            again: a limit costs waiting, not work.
        runs_per_job: short runs share a job. at_a_time: of those, how many at once.
        max_parallel: jobs of one submission that may run at once; each of its arrays has a share,
            and runs one at least.
        save_seconds: how long before its end a job is told to save.
        setup: lines of shell before the program starts (``module load ...``).
        python: the interpreter on the nodes, container and all; by default the one in use here.
        srun: arguments for srun.
        options: any other sbatch option, by its long name without dashes.
        collect: whether a small job after the others syncs MLflow and writes the report.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    hours: float = 4.0
    runs_per_job: int = 1
    at_a_time: int = 1
    max_parallel: int | None = None
    save_seconds: int = 120
    setup: tuple[str, ...] = ()
    python: str | None = None
    srun: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    collect: bool = True

    def __post_init__(self) -> None:
        check_range("slurm.hours", self.hours, 0, open_low=True)
        for name in ("runs_per_job", "at_a_time", "save_seconds"):
            check_range(f"slurm.{name}", getattr(self, name), 1)
        if self.max_parallel is not None:
            check_range("slurm.max_parallel", self.max_parallel, 1)
        for option in self.options:
            if str(option).replace("_", "-") in OURS:
                raise UserError(f"slurm.options.{option} is not to be set: fewstep sets it")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> SlurmSettings:
        """From a sweep's ``slurm:`` field; partition, account and qos by default from sbatch's
        variables (SBATCH_ACCOUNT), as many have them in their profile.

        Raises:
            UserError: an unknown setting, or a value of the wrong kind.
        """
        usual = {name: os.environ.get(f"SBATCH_{name.upper()}") for name in USUAL}
        return parse(cls, "slurm", {**{k: v for k, v in usual.items() if v}, **values})
