"""The sbatch scripts of a sweep's jobs, through submitit."""

import math
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit

from fewstep.errors import UserError
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.slurm.array_task import NO_LIMIT
from fewstep.sweeps.slurm.arrays import Chunk
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.setup_lines import guarded

SIGNALLED_EARLY = 128 + 12  # srun's exit code when USR2 found a process without its handler
RESTARTS = 20  # after which a job that cannot even begin is not queued again
REQUEUE = (
    f"|| {{ code=$?; [ $code -ne {SIGNALLED_EARLY} ]"
    f' || [ "${{SLURM_RESTART_COUNT:-0}}" -ge {RESTARTS} ]'
    ' || scontrol requeue "$SLURM_JOB_ID"; exit $code; }'
)
"""Added after srun, in bash: preemption or the time limit may kill Python, or its container, while
it is starting. The shell gets no signal, and requeues the job."""

OPTIONS = ("partition", "account", "qos", "constraint", "gres")
FINALIZER = Chunk((("finalizer",),), Resources(cpus=1, memory_gb=2, hours=1))
SIZES = re.compile(
    "mem|gres|gpu|tres|cpu|mincpus|core|socket|thread|ntasks|tasks-per|node(s|list|file)|exclusive|"
    "licenses|tmp|bb|time-min|hint|distribution|contiguous|spread-job|switches|extra-node-info"
)


class Executor(submitit.SlurmExecutor):
    """submitit's, but jobs start ``fewstep.sweeps.slurm.array_task``, which needs no pickle."""

    def command(self, module: str) -> str:
        """The command of srun: a module of this package with the submission's folder."""
        folder = shlex.quote(str(self.folder))
        return f"{self.python} -u -P -m fewstep.sweeps.slurm.{module} {folder} {REQUEUE}"

    @property
    def _submitit_command_str(self) -> str:
        return self.command("array_task")

    def script(self, tasks: int = 1, module: str = "array_task") -> str:
        """The sbatch script of an array of ``tasks``."""
        if tasks > 1:
            self.parameters["map_count"] = tasks
        text = self._make_submission_file_text(self.command(module), "0")
        self.parameters.pop("map_count", None)
        return text


def executor(
    folder: Path, name: str, settings: SlurmSettings, chunk: Chunk, dependency: str | None = None
) -> Executor:
    """Submits a chunk from ``folder`` (which need not exist yet).

    A job asks for the resources of as many runs as it runs at the same time. A UserError if this
    machine has no SLURM, or no folder for it.
    """
    resources, at_once = chunk.resources, chunk.at_once(settings)
    python = settings.python or shlex.quote(sys.executable)
    try:
        submitter = Executor(folder, max_num_timeout=NO_LIMIT, python=python)
    except RuntimeError:
        raise UserError(
            "no SLURM on this machine (srun not found): submit from a login node"
        ) from None
    options = {str(k).replace("_", "-"): v for k, v in settings.options.items()}
    options["requeue"] = True
    if resources.memory_gb is not None:  # SLURM counts in 2^20 bytes
        options.setdefault("mem", f"{math.ceil(at_once * resources.memory_gb * 1e9 / 2**20)}M")
    logs = _logs(submitter.folder, len(chunk.tasks))
    if logs is not None:
        options["output"] = f"{logs}_0_log.out"
    if dependency is not None:
        options["kill-on-invalid-dep"] = "yes"
    cpus = max(1, math.ceil(at_once * resources.cpus / resources.processes_per_node))
    parameters: dict[str, Any] = {
        "job_name": name,
        "comment": folder.name,
        "time": settings.minutes(resources),
        "signal_delay_s": settings.save_seconds,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": cpus,
        "stderr_to_stdout": True,
        "array_parallelism": chunk.max_parallel or 10**6,
        "additional_parameters": options,
        "wckey": None,
        **{name: getattr(settings, name) for name in OPTIONS},
        "setup": guarded(settings.setup) or None,
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
        parameters["gpus_per_node"] = math.ceil(at_once * resources.gpus)
    submitter.parameters.update(
        {k: v for k, v in parameters.items() if v is not None or k == "wckey"}
    )
    return submitter


def _logs(folder: Path, tasks: int) -> str | None:
    """The beginning of a job's log paths, if SLURM would misread a % in the folder; else None."""
    path = str(folder)
    if pattern := re.search("%[jtAa]", path):
        raise UserError(
            f"the run root has {pattern[0]} in its path, which SLURM would replace; "
            f"choose another with runs=DIR"
        )
    if "%" not in path:
        return None
    return f"{path.replace('%', '%%')}/{'%A_%a' if tasks > 1 else '%j'}"


def finalizer(folder: Path, name: str, settings: SlurmSettings, dependency: str) -> Executor:
    """Submits the job after all others: on their partition, but without GPUs."""
    small = replace(
        settings,
        gres=None,
        save_seconds=60,
        options={k: v for k, v in settings.options.items() if not _sets_size(str(k))},
        srun=tuple(
            word for word in settings.srun if not (word[:2] == "--" and _sets_size(word[2:]))
        ),
    )
    return executor(folder, name, small, FINALIZER, dependency)


def _sets_size(option: str) -> bool:
    return SIZES.match(option.replace("_", "-")) is not None
