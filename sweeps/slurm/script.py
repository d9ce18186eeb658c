"""The sbatch scripts of a sweep's jobs, through submitit."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit

from fewstep.errors import UserError
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm.job import FOR_EVER
from fewstep.sweeps.slurm.settings import SlurmSettings

TOLD_EARLY = 128 + 12  # srun's exit code when USR2 found a process without its handler
RESTARTS = 20  # after which a job that cannot even begin is not queued again
AGAIN = (
    f'|| {{ code=$?; [ $code -ne {TOLD_EARLY} ] || [ "${{SLURM_RESTART_COUNT:-0}}" -ge {RESTARTS} ]'
    ' || scontrol requeue "$SLURM_JOB_ID"; exit $code; }'
)
"""Behind srun, in bash: preemption or the time limit may come while Python, or the container around
it, is starting, and kills it. The shell is not signalled, and is there from the beginning."""

COLLECTING = Resources(cpus=1, memory_gb=2, hours=1)
SIZES = re.compile(
    "mem|gres|gpu|tres|cpu|mincpus|core|socket|thread|ntasks|tasks-per|node(s|list|file)|exclusive|"
    "licenses|tmp|bb|time-min|hint|distribution|contiguous|spread-job|switches|extra-node-info"
)


class Executor(submitit.SlurmExecutor):
    """submitit's, but the nodes start ``fewstep.sweeps.slurm.job``, which needs no pickle."""

    def command(self, module: str) -> str:
        """What srun starts: a module of this package, told the submission's folder."""
        folder = shlex.quote(str(self.folder))
        return f"{self.python} -u -P -m fewstep.sweeps.slurm.{module} {folder} {AGAIN}"

    @property
    def _submitit_command_str(self) -> str:
        return self.command("job")

    def script(self, tasks: int, module: str = "job") -> str:
        """The sbatch script of an array of ``tasks``."""
        if tasks > 1:
            self.parameters["map_count"] = tasks
        text = self._make_submission_file_text(self.command(module), "0")
        self.parameters.pop("map_count", None)
        return text


def executor(
    folder: Path,
    name: str,
    settings: SlurmSettings,
    resources: Resources,
    dependency: str | None = None,
    at_once: int = 1,
    tasks: int = 1,
) -> Executor:
    """What submits a chunk of ``tasks`` from ``folder`` (which need not be there yet).

    ``resources`` are a run's; a job asks for those of ``at_once`` runs.

    Raises:
        UserError: no SLURM on this machine, or no folder for it.
    """
    python = settings.python or shlex.quote(sys.executable)
    try:
        made = Executor(folder, max_num_timeout=FOR_EVER, python=python)
    except RuntimeError:
        raise UserError(
            "no SLURM on this machine (srun is not there): submit from a login node"
        ) from None
    options = {str(k).replace("_", "-"): v for k, v in settings.options.items()}
    options["requeue"] = True
    if resources.memory_gb is not None:  # SLURM counts in 2^20 bytes
        options.setdefault("mem", f"{math.ceil(at_once * resources.memory_gb * 1e9 / 2**20)}M")
    logs = _logs(made.folder, tasks)
    if logs is not None:
        options["output"] = f"{logs}_0_log.out"
    if dependency is not None:
        options["kill-on-invalid-dep"] = "yes"
    cpus = max(1, math.ceil(at_once * resources.cpus / resources.processes_per_node))
    wanted: dict[str, Any] = {
        "job_name": name,
        "comment": folder.name,
        "time": minutes(settings, resources),
        "signal_delay_s": settings.save_seconds,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": cpus,
        "stderr_to_stdout": True,
        "array_parallelism": settings.max_parallel or 10**6,
        "additional_parameters": options,
        "wckey": None,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gres": settings.gres,
        "setup": list(settings.setup) or None,
        "srun_args": [
            f"--cpus-per-task={cpus}",  # since SLURM 22.05 srun does not take it from the job
            # several processes are one run: one that dies ends the others
            *(["--kill-on-bad-exit=1"] if resources.processes > 1 else []),
            *([] if logs is None else [f"--output={logs}_%t_log.out"]),  # the last one counts
            *settings.srun,
        ],
        "dependency": dependency,
    }
    if resources.gpus and settings.gres is None:
        wanted["gpus_per_node"] = math.ceil(at_once * resources.gpus)
    made.parameters.update({k: v for k, v in wanted.items() if v is not None or k == "wckey"})
    return made


def _logs(folder: Path, tasks: int) -> str | None:
    """How a job's logs begin where submitit would have SLURM misread it: at a % in the path.

    Raises:
        UserError: it would itself.
    """
    path = str(folder)
    if found := re.search("%[jtAa]", path):
        raise UserError(
            f"the run root has {found[0]} in its path, which SLURM would replace; "
            f"choose another with runs=DIR"
        )
    if "%" not in path:
        return None
    return f"{path.replace('%', '%%')}/{'%A_%a' if tasks > 1 else '%j'}"


def collector(folder: Path, name: str, settings: SlurmSettings, dependency: str) -> Executor:
    """What submits the job after all others: it goes where they go, but waits for no GPU."""
    small = replace(
        settings,
        gres=None,
        save_seconds=60,
        options={k: v for k, v in settings.options.items() if not _asks(str(k))},
        srun=tuple(word for word in settings.srun if not (word[:2] == "--" and _asks(word[2:]))),
    )
    return executor(folder, name, small, COLLECTING, dependency)


def _asks(option: str) -> bool:
    """Whether an option of sbatch or srun asks for something that others may have."""
    return SIZES.match(option.replace("_", "-")) is not None


def minutes(settings: SlurmSettings, resources: Resources) -> int:
    """The time limit of a job."""
    return math.ceil(60 * (settings.hours if resources.hours is None else resources.hours))


def check_hours(settings: SlurmSettings, asked: Iterable[Resources]) -> None:
    """Refuse a limit that comes no later than the signal before it: a job would never get on.

    Raises:
        UserError: some of ``asked``, resources of runs, or the settings, have one.
    """
    for resources in asked:
        limit, save = minutes(settings, resources), settings.save_seconds
        if 60 * limit <= save:
            name = "slurm.hours" if resources.hours is None else "resources.hours"
            hours = settings.hours if resources.hours is None else resources.hours
            raise UserError(
                f"{name}={hours:g} gives a job {60 * limit} s, but slurm.save_seconds={save} "
                f"has it save that long before its end: "
                f"it needs more than {save / 3600:.3g} hours"
            )
