"""The SLURM launcher: runs as arrays of jobs. Imports submitit only to use it."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import UserError, counted
from fewstep.sweeps.definition.launchers import LAUNCHERS
from fewstep.sweeps.definition.member import teacher_key
from fewstep.sweeps.launcher import LaunchRequest, OnEvent, Outcome
from fewstep.sweeps.slurm import squeue
from fewstep.sweeps.slurm.arrays import Chunk, RunToSubmit, chunks
from fewstep.sweeps.slurm.settings import SlurmSettings

JOBS_TO_GO_ON = 3
"""Of a limit of submitted jobs: a finalizer, which is running, a run, and the next finalizer."""


@LAUNCHERS.register("slurm")
@dataclass(frozen=True)
class SlurmLauncher(SlurmSettings):
    """Runs in SLURM jobs, which resume after preemption, time limits and node failures."""

    def check(self, request: LaunchRequest) -> None:
        """Refuse time limits that leave no time to train, and machines without SLURM."""
        self.check_hours(request.resources_of(key) for key in request.configs)
        squeue.array_limit()  # fails without SLURM

    def preview(self, request: LaunchRequest) -> Sequence[str]:
        """The arrays that would be submitted, and the sbatch script of each kind."""
        from fewstep.sweeps.slurm.submission import Slurm

        self.check_hours(request.resources_of(key) for key in request.configs)
        arrays = self._arrays(request)
        slurm = Slurm(request.directory, self)
        lines, shown = [], set()
        for chunk, script in slurm.scripts(arrays):
            count = sum(len(keys) for keys in chunk.tasks)
            tasks = counted(len(chunk.tasks), "task")
            lines.append(f"an array of {tasks}, {counted(count, 'run')}")
            gpus = chunk.resources.gpus
            if gpus != int(gpus) and self.gres is None:
                whole = math.ceil(chunk.at_once(self) * gpus)
                lines.append(f"{gpus:g} GPUs per run: SLURM has whole GPUs, a job asks for {whole}")
            kind = (chunk.resources, chunk.teacher is None)
            if kind not in shown:
                shown.add(kind)
                lines.append(script)
        if arrays and self.finalize:
            lines += ["a finalizer, after all other jobs", slurm.finalizer_script()]
        return lines

    def summary(self, request: LaunchRequest) -> Sequence[str]:
        """The shape of the arrays: jobs of so many runs, what each asks for, and how often the
        longest is requeued."""
        kinds: Counter[str] = Counter()
        turns = 1
        arrays = self._arrays(request)
        for chunk in arrays:
            limit, at_once = 60 * self.minutes(chunk.resources), chunk.at_once(self)
            nodes, gpus = chunk.resources.nodes, chunk.resources.nodes * chunk.resources.gpus
            asks = [counted(nodes, "node")] if nodes > 1 else []
            asks += [counted(math.ceil(at_once * gpus), "GPU")] if gpus else []
            for keys in chunk.tasks:
                each = ", ".join([*asks, f"at most {limit / 3600:.3g} h"])
                kinds[f"of {counted(len(keys), 'run')} (each: {each})"] += 1
                seconds = [request.seconds.get(key, 0.0) for key in keys]
                wall = max(max(seconds), sum(seconds) / at_once)
                turns = max(turns, math.ceil(wall / (limit - self.save_seconds)))
        if not arrays:
            return []
        shape = ", ".join(f"{counted(n, 'job')} {kind}" for kind, n in kinds.items())
        lines = [f"SLURM: {counted(len(arrays), 'array')}: {shape}"]
        if turns > 1:
            times = counted(turns - 1, "time")
            lines.append(f"  the longest job reaches its limit, and is requeued, {times}")
        return lines

    def _arrays(self, request: LaunchRequest) -> list[Chunk]:
        runs = []
        for key, config in request.configs.items():
            teacher = teacher_key(config)
            waits_for = teacher if teacher in request.configs else None
            runs.append(RunToSubmit(key, waits_for, request.resources_of(key)))
        limit = squeue.ARRAY_LIMIT
        with contextlib.suppress(UserError):  # no cluster answers: ``check`` says so
            limit = squeue.array_limit()
        return chunks(runs, self, limit)

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        """Submit the runs, and return: nobody needs to stay logged in."""
        from fewstep.sweeps.slurm.submission import Slurm

        resources = {key: request.resources_of(key) for key in request.configs}
        slurm = Slurm(request.directory, self)
        submissions = slurm.submit(request.runs, resources)
        submitted = {key for s in submissions for keys in s.tasks for key in keys}
        notes = []
        for s in submissions:
            tasks, runs = counted(len(s.tasks), "task"), counted(sum(map(len, s.tasks)), "run")
            notes.append(f"submitted job {s.job}: {tasks}, {runs}")
        if submissions.refused:
            count = len(submissions.waiting)
            left = [counted(count, "run")] if count else []
            later = "the finalizer submits them when the others have ended, or "
            if self.finalize and not submissions.finalized:
                left, later = [*left, "the finalizer"], ""
            elif (limit := submissions.limit) is not None and limit < JOBS_TO_GO_ON:
                later = f"of {limit} jobs, no finalizer can submit a run and the next finalizer; "
            rest = later * self.finalize + "the same command submits them when started again"
            notes.append(f"not submitted: {' and '.join(left)} ({submissions.refused}); {rest}")
        if others := len(request.configs) - len(submitted) - len(submissions.waiting):
            notes.append(f"already queued, running or finished: {counted(others, 'run')}")
        follow = f"to follow it: fewstep status {request.directory.name} --watch"
        notes.append(follow if request.configs else "nothing is left to submit")
        return Outcome(detached=True, notes=notes, interrupted=list(submissions.waiting))
