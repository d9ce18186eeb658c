"""A task on its node: whom it takes a run from, and how it saves; no cluster is needed for that."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.commands import wait_for
from helpers.slurm_commands import Commands, sweep_of

from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.lease import Attempt
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.worker import UNRECORDED
from fewstep.files import IO_ERRORS
from fewstep.sweeps import cpu_threads as threads
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launcher import Outcome
from fewstep.sweeps.local.worker_pool import WorkerPool
from fewstep.sweeps.run_queue import RunQueue
from fewstep.sweeps.slurm import array_task as jobs
from fewstep.sweeps.slurm.array_task import StaleAttempts, reason_of_end
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import Slurm

RECORDED = Path(__file__).parent / "recorded"
PYTHON = sys.executable
MINE = {"launcher": "slurm", "id": "100_1", "restart": 2, "user": "me", "cluster": "box"}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


# ------------------------------------------------------------------------- whom it takes a run from


def over(**job: Any) -> bool:
    """Whether an attempt of that job, else like ours, is over for one that asks now."""
    return StaleAttempts(MINE, "fewstep-mine")(replace(Attempt.mine(), job={**MINE, **job}))


def test_of_its_own_job_whoever_began_before_it_is_a_ghost(commands: Commands) -> None:
    assert over(restart=1)
    assert not over(restart=2)
    assert commands.metric_requests() == 0


def test_who_is_in_no_job_is_not_for_slurm_to_tell(commands: Commands) -> None:
    ghosts = StaleAttempts(MINE, "fewstep-mine")
    assert not ghosts(replace(Attempt.mine(), job=None))
    assert not ghosts(replace(Attempt.mine(), job={"launcher": "ray", "id": "7"}))
    assert commands.metric_requests() == 0


@pytest.mark.parametrize(
    ("state", "restarts", "ghost"),
    [
        ("RUNNING", 0, False),
        ("COMPLETING", 0, False),
        ("RUNNING", 1, True),  # it was started again elsewhere
        ("PENDING", 1, True),
        ("REQUEUE_HOLD", 0, True),
        ("COMPLETED", 0, True),
        ("NODE_FAIL", 0, True),
        ("CANCELLED", 0, True),
    ],
)
def test_of_another_job_it_is_a_ghost_when_that_is_over(
    commands: Commands, state: str, restarts: int, ghost: bool
) -> None:
    commands.says("70", state, restarts)
    assert over(id="70", restart=0) is ghost


@pytest.mark.parametrize(
    ("who", "ghost"), [({}, True), ({"user": "you"}, False), ({"cluster": "other"}, False)]
)
def test_a_job_that_slurm_does_not_know_is_over_only_if_we_would_be_shown_it(
    commands: Commands, who: dict[str, str], ghost: bool
) -> None:
    commands.says("71", "RUNNING")
    assert over(id="70", **who) is ghost


def test_when_slurm_does_not_answer_nobody_is_a_ghost(commands: Commands) -> None:
    commands.program("squeue", "exit 1")
    assert not over(id="70")


def test_slurm_is_not_asked_all_the_time(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.says("70", "RUNNING")
    ghosts, other = StaleAttempts(MINE, "n"), replace(Attempt.mine(), job={**MINE, "id": "70"})
    assert not any([ghosts(other), ghosts(other)])
    assert commands.metric_requests() == 1
    monkeypatch.setattr(jobs, "QUERY_SECONDS", 0.0)
    commands.says("70", "COMPLETED")
    assert all([ghosts(other), ghosts(other)])  # and what is over stays so
    assert commands.metric_requests() == 2


# ------------------------------------------------------------------------- why it ends


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (("", ""), "cancelled"),
        ((" PreemptTime=None", " PreemptTime=2026-11-21T16:06:00"), "preempted"),
        (("RunTime=00:00:03", "RunTime=1-01:00:02"), "timeout"),
        (("RunTime=00:00:03", "RunTime=INVALID"), "cancelled"),
    ],
)
def test_why_a_job_was_told_to_end(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, str], why: str
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    told = (RECORDED / "scontrol_show_job.txt").read_text()
    assert changed[0] in told
    (commands.folder / "told").write_text(told.replace(*changed))
    commands.program("scontrol", "cat told")
    assert reason_of_end() == why
    commands.program("scontrol", "exit 1")
    assert reason_of_end() == "unknown"


@pytest.mark.parametrize(("asked", "told"), [(True, "fewstep cancel"), (False, "scancel")])
def test_who_cancelled_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, told: str
) -> None:
    [run] = sweep_of(tmp_path, a=None).runs()
    if asked:
        run.cancel.touch()
    monkeypatch.setattr(jobs, "reason_of_end", lambda: "cancelled")
    jobs.ArrayTask(str(tmp_path), 0)._record_external_end([run])
    failure = run.failure()
    assert failure is not None
    assert (failure["class"], failure["message"]) == (
        "cancelled",
        f"the job was cancelled ({told})",
    )


def test_runs_of_a_pack_have_the_cores_they_asked_for_whatever_the_node_has(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None, c=None)
    asked = {run.key: Resources(cpus=3) for run in sweep.runs()}
    packed = SlurmSettings(runs_per_job=3, at_a_time=2, finalize=False)
    [made] = Slurm(sweep, packed).submit(sweep.runs(), asked)
    assert "--cpus-per-task=6" in commands.script("100")
    for name, value in {"JOB_ID": "100", "CPUS_PER_TASK": "6"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    seen = []

    def launch(launcher: WorkerPool, runs: Any, on_event: Any) -> Outcome:
        seen.append((launcher.workers, launcher.cpus))
        for run in runs:
            run.write("result", {"provenance": {}})
        return Outcome()

    monkeypatch.setattr(WorkerPool, "launch", launch)
    jobs.ArrayTask(str(made.folder), 0)()
    assert seen == [(2, 3)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("where", ["of a run", "of the task", "before the task"])
def test_where_nothing_can_be_written_the_exit_code_says_so(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    """And no error of a file ends the other runs of the job."""
    sweep = sweep_of(tmp_path, a=None, b=None)
    resources = {run.key: Resources() for run in sweep.runs()}
    packed = SlurmSettings(runs_per_job=2, finalize=False)
    [made] = Slurm(sweep, packed).submit(sweep.runs(), resources)
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(sys, "argv", ["job", str(made.folder)])

    def away(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    def launch(pool: WorkerPool, runs: Any, on_event: Any) -> Outcome:
        if where == "of the task":
            away()
        queue = RunQueue(list(runs), on_event)
        monkeypatch.setattr(RunDirectory, "write", away)
        while run := queue.next():
            queue.start(run)
            queue.end(run, UNRECORDED[kind])
        assert set(queue.outcome.failed) == {"a", "b"}
        return queue.outcome

    [kind] = [kind for kind, numbers in IO_ERRORS.items() if number in numbers]
    monkeypatch.setattr(WorkerPool, "launch", launch)
    monkeypatch.setattr(jobs, "append", away)  # the file of runs that it has passed
    if where == "before the task":
        monkeypatch.setattr(jobs, "process_job", away)
    assert jobs.main() == UNRECORDED[kind]


# ------------------------------------------------------------------------- one rank of several

# in the place of the interpreter: works until it is told to save, or is done at once
WORKER = """#!/bin/sh
trap 'echo saved >> "$4/said"; exit 75' TERM
echo "begun $RANK of $WORLD_SIZE after $FEWSTEP_SUPERSEDES" >> "$4/said"
echo "$OMP_NUM_THREADS" > "$4/threads"
while ! [ -e "$4/done" ]; do sleep 0.02; done
"""


@pytest.fixture
def rank(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunDirectory]:
    """The run of a job of two processes; this one is the first of them, as srun starts it."""
    sweep = sweep_of(tmp_path, a=None)
    [made] = Slurm(sweep, SlurmSettings(finalize=False)).submit(
        sweep.runs(), {"a": Resources(nodes=2)}
    )
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(sys, "argv", ["job", str(made.folder)])
    told = {"JOB_ID": "100", "NTASKS": "2", "PROCID": "0", "JOB_NUM_NODES": "2"}
    told |= {"CPUS_PER_TASK": "4"}
    monkeypatch.setattr(threads, "cores", lambda: 40)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(made.folder))
    commands.program("scontrol", 'echo "$@" >> told')
    signals = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in signals]
    yield sweep.runs()[0]
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def said(run: RunDirectory) -> list[str]:
    file = run.path / "said"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("when", ["its worker is known", "its worker is being started"])
def test_told_to_save_a_rank_has_its_worker_save_and_the_job_queued_again(
    when: str, rank: RunDirectory, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE_SECONDS", 40.0)

    idle = threading.Event()  # NumPy's libraries have threads, too, which may get the signal
    other = threading.Thread(target=idle.wait, daemon=True)
    other.start()

    def preempt() -> None:
        wait_for(lambda: said(rank), "a worker at work")
        assert other.ident is not None
        signal.pthread_kill(other.ident, signal.SIGUSR2)

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(command, **options)
        if when == "its worker is being started":
            preempt()
            time.sleep(0.1)  # here a handler that is not held would run
        else:
            threading.Thread(target=preempt, daemon=True).start()
        return started

    begun = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))
        with pytest.raises(SystemExit):
            jobs.main()
    idle.set()
    assert time.monotonic() - begun < 30  # it saw its worker leave, while it waited for it
    assert said(rank) == ["begun 0 of 2 after ", "saved"]
    assert (rank.path / "threads").read_text() == "4\n"  # not all that the node has
    assert (commands.folder / "told").read_text() == "requeue 100\n"
    assert rank.failure() is None

    # on a node that was dropped, not stopped, the first attempt seems to live
    ghost = replace(Attempt.mine(), machine="another", job={**jobs.this_job(), "restart": 0})
    write_json(rank.lease, asdict(ghost))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (rank.path / "done").touch()
    jobs.main()
    assert said(rank)[2:] == [f"begun 0 of 2 after {ghost.token}"]


def test_a_rank_whose_worker_fails_fails(
    rank: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "worker").write_text("#!/bin/sh\nexit 1\n")
    assert jobs.main() == 1
    assert "run a is not done (exit code 1)" in caplog.text


def test_a_rank_tells_by_its_exit_code_what_its_worker_could_not_write(
    rank: RunDirectory, tmp_path: Path
) -> None:
    """As SLURM starts it: by its name, where the pickle names classes as others import them."""
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nexit 73\n")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(worker)!r}\n")
    command = [PYTHON, "-P", "-m", "fewstep.sweeps.slurm.array_task", sys.argv[1]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == UNRECORDED["disk_full"], done.stderr
    assert "run a is not done (exit code 73)" in done.stderr


def test_a_rank_whose_log_cannot_be_opened_says_so(rank: RunDirectory) -> None:
    rank.log.mkdir()
    assert jobs.main() == 1
    assert f"Is a directory: '{rank.log}'" in (rank.failure() or {})["message"]
