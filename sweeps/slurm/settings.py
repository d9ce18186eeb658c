"""The ``slurm:`` field of a sweep, or ``slurm.KEY=VALUE`` on the command line."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fewstep.errors import UserError, check_fields
from fewstep.sweeps.definition.resources import Resources

FIXED = ("array", "dependency", "output", "error", "signal", "open-mode", "requeue", "comment",
         "time")  # fmt: skip
"""sbatch options that users cannot set: a sweep would not work with other values, or has hours."""

USUAL = ("partition", "account", "qos")


@dataclass(frozen=True)
class SlurmSettings:
    """The settings of the SLURM launcher: how runs become jobs.

    Attributes:
        partition, account, qos, constraint, gres: as sbatch takes them; gres instead of the
            resources' gpus.
        hours: time limit of a job whose runs name none. A job that reaches it saves and is queued
            again: a short limit costs time in the queue, and no training steps.
        runs_per_job: short runs share a job. at_a_time: of those, how many at once.
        max_parallel: jobs of one submission that may run at once, divided among its arrays; each
            array may run one at least.
        save_seconds: how long before its end a job is told to save.
        setup: lines of shell before the program starts (``module load ...``).
        python: the command that starts Python on the nodes, container included; by default the
            interpreter in use here.
        srun: arguments for srun.
        options: any other sbatch option, by its long name without dashes.
        finalize: whether a small job after the others syncs MLflow and writes the report.
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
    finalize: bool = True

    renamed: ClassVar[Mapping[str, str]] = {"collect": "finalize"}  # until version 0.3

    def __post_init__(self) -> None:
        check_fields("slurm", self, "hours", 0, open_low=True)
        check_fields("slurm", self, "runs_per_job at_a_time save_seconds max_parallel", 1)
        for option in self.options:
            if str(option).replace("_", "-") in FIXED:
                raise UserError(f"slurm.options.{option} cannot be set: fewstep sets it")

    @staticmethod
    def environment_defaults() -> dict[str, str]:
        """Partition, account and qos from sbatch's variables, which many set in their profile."""
        variables = {name: os.environ.get(f"SBATCH_{name.upper()}") for name in USUAL}
        return {name: value for name, value in variables.items() if value}

    def minutes(self, resources: Resources) -> int:
        """The time limit of a job whose runs ask for ``resources``."""
        return math.ceil(60 * (self.hours if resources.hours is None else resources.hours))

    def check_hours(self, requests: Iterable[Resources]) -> None:
        """Refuse time limits no later than the signal before them: no step would be made."""
        for resources in requests:
            seconds, save = 60 * self.minutes(resources), self.save_seconds
            if seconds <= save:
                name = "slurm" if resources.hours is None else "resources"
                hours = self.hours if resources.hours is None else resources.hours
                raise UserError(
                    f"{name}.hours={hours:g} gives a job {seconds} s, but with "
                    f"slurm.save_seconds={save} it has to save that long before its end: "
                    f"it needs more than {save / 3600:.3g} hours"
                )
