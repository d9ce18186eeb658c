"""Why runs ended that could not say so, from what SLURM says; no cluster is needed for that."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from helpers.slurm_commands import LATER, LONG_AGO, Commands, began, long_ago, sweep_of

from fewstep.cli.commands.cancel import cancel
from fewstep.cli.commands.status import queued_runs, read
from fewstep.experiments.store import failures
from fewstep.experiments.store.lease import RunLease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.slurm import squeue as queue
from fewstep.sweeps.slurm.reconcile import reconcile
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.setup_lines import FAILED
from fewstep.sweeps.slurm.squeue import Job
from fewstep.sweeps.slurm.submission import Slurm
from fewstep.sweeps.status import run_status, sweep_status

RECORDED = Path(__file__).parent / "recorded"  # by SLURM 22.05, on the cluster of the tests


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def submit(sweep: SweepDirectory, *runs: RunDirectory, **settings: int) -> None:
    made = Slurm(sweep, SlurmSettings(finalize=False, **settings))  # type: ignore[arg-type]
    made.submit(runs or sweep.runs(), {run.key: Resources() for run in sweep.runs()})


@pytest.fixture
def sweep(tmp_path: Path, commands: Commands) -> SweepDirectory:
    """With one run, in job 100."""
    made = sweep_of(tmp_path, a=None)
    submit(made)
    return made


def failure_of(sweep: SweepDirectory, key: str = "a") -> tuple[str, str]:
    failure = RunDirectory(sweep.path / key).failure()
    return ("", "") if failure is None else (failure["class"], failure["message"])


def fail(run: RunDirectory, kind: str, finished: str = LATER) -> None:
    run.write("failure", {**failures.record(run, kind, "its own word"), "finished": finished})


# ------------------------------------------------------------------------- what SLURM says


def test_what_a_real_slurm_printed_is_understood(commands: Commands) -> None:
    commands.program("squeue", f"cat {RECORDED / 'squeue.txt'}")
    ids = ["55277114", "55277115", "55277116", "55277117", "55277118", "55277119"]
    told = queue.jobs("fewstep-mine", ids)
    assert told is not None
    jobs = list(told.values())
    assert {(j.comment, j.id, j.state, j.nodes, j.reason) for j in jobs} == {
        ("teacher", "55277114", "NODE_FAIL", "node1", "NodeDown"),
        ("student", "55277115", "CANCELLED", "", queue.IN_VAIN),
        ("scancelled", "55277116", "CANCELLED", "", "Dependency"),
        ("array", "55277117_0", "RUNNING", "node2", "None"),
        ("array", "55277117_1", "PENDING", "", "JobArrayTaskLimit"),
        ("array", "55277117_2", "PENDING", "", "JobArrayTaskLimit"),
        ("failed", "55277118", "FAILED", "node2", "NonZeroExitCode"),
        ("completed", "55277119", "COMPLETED", "node2", "None"),
    }
    assert {j.id for j in jobs if j.live} == {f"55277117_{i}" for i in range(3)}
    assert {j.id for j in jobs if j.waiting} == {"55277117_1", "55277117_2"}


def test_accounting_knows_what_squeue_has_forgotten(commands: Commands) -> None:
    commands.program("sacct", f"cat {RECORDED / 'sacct.txt'}")
    commands.says("55277118", "PENDING", restarts=1)  # squeue is right where both know a job
    told = queue.jobs("fewstep-mine", ["55277114", "55277118"])
    assert told is not None
    states = {job.id: (job.state, job.reason) for job in told.values()}
    assert states == {
        "55277114": ("LOST", ""),  # it may have come back, but squeue does not know it
        "55277115": ("CANCELLED", queue.IN_VAIN),
        "55277116": ("CANCELLED", ""),
        "55277117_0": ("LOST", ""),
        "55277118": ("PENDING", "None"),
        "55277119": ("COMPLETED", ""),
    }


@pytest.mark.parametrize(
    ("name", "comment", "known"),
    [("fewstep-mine", "", True), ("fewstep-other", "", False), ("fewstep-mine", "other", False)],
)
def test_a_job_of_the_same_number_but_another_submission_is_not_ours(
    commands: Commands, tmp_path: Path, name: str, comment: str, known: bool
) -> None:
    """The numbers of jobs begin anew on a new cluster, and two clusters count by themselves."""
    sweep = sweep_of(tmp_path, run=None)
    made = Slurm(sweep, SlurmSettings(finalize=False))
    (submission,) = made.submit(sweep.runs(), {"run": Resources()})
    assert submission.job is not None
    commands.forgets(submission.job)
    commands.accounting({submission.job: "FAILED|node1"}, "1:0", name, comment)
    assert (Slurm(sweep).tasks()["run"].job is not None) == known
    assert reconcile(sweep) == ({"run": "bug"} if known else {})
    assert (sweep.runs()[0].failure() is not None) == known


def test_jobs_of_another_cluster_are_not_looked_for_here(
    tmp_path: Path, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """Two clusters may count alike, and share names, comments and run roots."""
    commands.program("scontrol", "echo 'ClusterName             = a'")
    sweep = sweep_of(tmp_path, a=None)
    submit(sweep, *sweep.runs())
    assert Slurm(sweep).queued()["a"].id == "100"
    commands.program("scontrol", "echo 'ClusterName             = b'")
    commands.says("100", "FAILED")
    assert reconcile(sweep) == {}
    assert Slurm(sweep).queued() == {}
    assert "1 submission of mine to the cluster a cannot be seen from b" in caplog.text
    submit(sweep, *sweep.runs())
    assert Slurm(sweep).queued()["a"].id == "101"
    commands.program("scontrol", "exit 0")  # nothing says where we are: as before
    assert reconcile(sweep) == {}
    assert Slurm(sweep).queued()["a"].id == "101"


def test_a_line_of_setup_that_fails_is_the_reason(commands: Commands, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, run=None)
    settings = SlurmSettings(setup=("echo ready", "module load nothing"), finalize=False)
    (submission,) = Slurm(sweep, settings).submit(sweep.runs(), {"run": Resources()})
    assert submission.job is not None
    script = commands.script(submission.job)
    commands.program("srun", "echo the program runs")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, "the program runs" in done.stdout) == (FAILED, False)
    submission.log(0).write_text(done.stdout)
    commands.says(submission.job, "FAILED", status=FAILED << 8)
    assert reconcile(sweep) == {"run": "bad_data"}
    failure = sweep.runs()[0].failure() or {}
    assert "slurm.setup failed (exit code 127): module load nothing" in failure["message"]


# ------------------------------------------------------------------------- what becomes of it


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        ("TIMEOUT", "timeout", "before it could save"),
        ("OUT_OF_MEMORY", "oom", "more memory than it asked for"),
        ("NODE_FAIL", "lost_node", "the node was lost"),
        ("PREEMPTED", "preempted", "another job took the node"),
        ("CANCELLED", "cancelled", "the job was cancelled (job 100)"),
        ("FAILED", "bug", "the job failed before the run could begin"),
        ("COMPLETED", "bad_data", "the job ended before the run began"),  # exit 0 in slurm.setup
    ],
)
def test_the_end_of_a_job_is_the_end_of_a_run_that_says_nothing(
    sweep: SweepDirectory, commands: Commands, state: str, kind: str, told: str
) -> None:
    commands.says("100", "RUNNING")
    assert reconcile(sweep) == {}
    commands.says("100", state)
    assert reconcile(sweep) == {"a": kind}
    assert told in failure_of(sweep)[1]
    assert failure_of(sweep)[1].endswith("(job 100)")  # which has no log
    long_ago(sweep)
    assert reconcile(sweep) == {}  # once is enough


def test_the_jobs_log_is_named(sweep: SweepDirectory, commands: Commands) -> None:
    [made] = Slurm(sweep, SlurmSettings()).submissions()
    made.log(0).touch()
    commands.says("100", "FAILED")
    reconcile(sweep)
    assert failure_of(sweep)[1].endswith(f"(job 100, log: {made.folder}/100_0_log.out)")


@pytest.mark.parametrize("forgotten", [False, True])
def test_one_whose_log_slurm_could_not_open_is_an_io_error_and_names_the_folder(
    sweep: SweepDirectory, commands: Commands, forgotten: bool
) -> None:
    [made] = Slurm(sweep, SlurmSettings()).submissions()
    commands.says("100", "FAILED", status=4021)
    if forgotten:
        commands.forgets("100")
        commands.accounting({"100": "FAILED|node1"}, "0:53")
    assert reconcile(sweep) == {"a": "io_error"}
    told = f"SLURM could not open the job's log in {made.folder} (job 100)"
    assert failure_of(sweep)[1] == told


def test_a_job_that_takes_too_much_memory_is_out_of_memory_though_its_run_says_killed(
    sweep: SweepDirectory, commands: Commands
) -> None:
    [run] = sweep.runs()
    began(run, "100", ended="killed")
    fail(run, "killed")
    commands.says("100", "OUT_OF_MEMORY")
    assert reconcile(sweep) == {"a": "oom"}
    assert not failures.retried_on_launch(run)


@pytest.mark.parametrize(("state", "kind"), [("OUT_OF_MEMORY", "bug"), ("TIMEOUT", "killed")])
def test_what_a_run_says_itself_stands(
    sweep: SweepDirectory, commands: Commands, state: str, kind: str
) -> None:
    [run] = sweep.runs()
    began(run, "100", ended=kind)
    fail(run, kind, finished=LONG_AGO)  # by the clock of its node, which is slow
    commands.says("100", state)
    assert reconcile(sweep) == {}
    assert failure_of(sweep) == (kind, "its own word")


def test_one_that_was_killed_elsewhere_had_not_the_memory_of_the_job(
    sweep: SweepDirectory, commands: Commands
) -> None:
    [run] = sweep.runs()
    began(run, None, when=LONG_AGO)  # at work when the job was submitted, which waited for it
    fail(run, "killed")
    commands.says("100", "OUT_OF_MEMORY")
    assert reconcile(sweep) == {}


def test_a_job_that_failed_while_its_run_was_at_work_says_no_more(
    sweep: SweepDirectory, commands: Commands
) -> None:
    began(sweep.runs()[0], "100")
    commands.says("100", "FAILED")
    assert reconcile(sweep) == {"a": "bug"}
    assert failure_of(sweep)[1].startswith("the job failed (job 100")


def test_one_that_saved_and_could_not_be_queued_again_was_preempted(
    sweep: SweepDirectory, commands: Commands
) -> None:
    [run] = sweep.runs()
    began(run, "99", when=LONG_AGO, ended="interrupted")
    commands.says("100", "FAILED")
    assert reconcile(sweep) == {"a": "bug"}  # saved, but in another job: in this it did not begin
    run.remove("failure")
    began(run, "100", ended="interrupted")
    assert reconcile(sweep) == {"a": "preempted"}
    assert failures.retried_by_launcher(run)


@pytest.mark.parametrize("at_work", [False, True])
@pytest.mark.parametrize("forgotten", [False, True])
def test_one_that_was_told_to_save_before_anything_could_hear_it_was_preempted(
    sweep: SweepDirectory, commands: Commands, forgotten: bool, at_work: bool
) -> None:
    [run] = sweep.runs()
    if at_work:
        began(run, "100")
    commands.says("100", "FAILED", status=35840)  # as SLURM 22.05 says of srun's exit code 140
    if forgotten:
        commands.forgets("100")
        commands.accounting({"100": "FAILED|node1"}, code="12:0")
    assert reconcile(sweep) == {"a": "preempted"}
    assert failures.retried_by_launcher(run)


@pytest.mark.parametrize("status", [127 << 8, 1 << 8, 12 << 8, (128 + 15) << 8])
def test_one_whose_program_was_not_there_is_at_fault(
    sweep: SweepDirectory, commands: Commands, status: int
) -> None:
    commands.says("100", "FAILED", status=status)
    assert reconcile(sweep) == {"a": "bug"}
    assert "before the run could begin" in failure_of(sweep)[1]


@pytest.mark.parametrize("other", [None, "101"])
def test_a_run_that_another_took_after_the_job_was_submitted_is_not_the_jobs(
    sweep: SweepDirectory, commands: Commands, other: str | None
) -> None:
    [run] = sweep.runs()
    began(run, other)
    commands.says("100", "NODE_FAIL")
    assert reconcile(sweep) == {}
    began(run, "100")  # but once the job has it, it is
    assert reconcile(sweep) == {"a": "lost_node"}


def test_what_is_done_or_stopped_is_left_as_it_is(tmp_path: Path, commands: Commands) -> None:
    sweep = sweep_of(tmp_path, done=None, stopped=None, neither=None)
    submit(sweep, runs_per_job=3)
    for run in sweep.runs():
        began(run, "100")
    sweep.runs()[0].write("result", {"provenance": {}})
    sweep.runs()[1].write("stopped", {"step": 3})
    commands.says("100", "TIMEOUT")
    assert reconcile(sweep) == {"neither": "timeout"}


def test_who_is_at_work_will_tell_himself(sweep: SweepDirectory, commands: Commands) -> None:
    commands.says("100", "TIMEOUT")
    with RunLease(sweep.runs()[0]):
        assert reconcile(sweep) == {}
    assert reconcile(sweep) == {"a": "timeout"}


def test_cancelled_before_it_began_it_says_so(sweep: SweepDirectory, commands: Commands) -> None:
    commands.says("100", "CANCELLED", nodes="", reason="Dependency")
    reconcile(sweep)
    assert failure_of(sweep)[0] == "cancelled"
    assert "cancelled before it began" in failure_of(sweep)[1]
    RunDirectory(sweep.path / "a").remove("failure")
    commands.forgets("100")
    commands.accounting({"100": "CANCELLED by 1000|None assigned"})
    assert reconcile(sweep) == {"a": "cancelled"}
    assert "cancelled before it began" in failure_of(sweep)[1]


def test_our_own_cancel_is_called_so(sweep: SweepDirectory, commands: Commands) -> None:
    [run] = sweep.runs()
    began(run, "100")
    run.cancel.touch()
    commands.says("100", "CANCELLED")
    assert reconcile(sweep) == {"a": "cancelled"}
    assert "(fewstep cancel)" in failure_of(sweep)[1]


def test_a_run_that_waits_again_says_for_what_and_not_how_it_failed_before(
    sweep: SweepDirectory,
) -> None:
    [run] = sweep.runs()
    fail(run, "bug")
    assert run_status(run).note == "bug: its own word"
    status = run_status(run, waits="job 100: pending, Priority")
    assert (status.state, status.note) == ("queued", "job 100: pending, Priority")


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_student_that_slurm_removed_has_no_teacher(
    sweep: SweepDirectory, commands: Commands, forgotten: bool
) -> None:
    commands.says("100", "CANCELLED", nodes="", reason=queue.IN_VAIN)
    if forgotten:
        commands.forgets("100")
        commands.accounting({"100": "CANCELLED|None assigned"})
    assert reconcile(sweep) == {"a": "no_teacher"}


def test_the_failure_of_an_earlier_job_does_not_hide_that_the_next_was_cancelled(
    sweep: SweepDirectory, commands: Commands
) -> None:
    [run] = sweep.runs()
    began(run, "100", when=LONG_AGO)
    fail(run, "lost_node", finished=LONG_AGO)
    commands.says("100", "NODE_FAIL")
    long_ago(sweep)
    submit(sweep)
    commands.says("101", "CANCELLED", nodes="")
    assert reconcile(sweep) == {"a": "cancelled"}
    assert not failures.retried_by_launcher(run)


# ------------------------------------------------------------------------- SLURM itself is away


@pytest.mark.parametrize("status", [9, (128 + 9) << 8])
def test_a_process_that_was_killed_is_no_preemption(
    sweep: SweepDirectory, commands: Commands, status: int
) -> None:
    """The run's own process noticed that its parent was gone, and saved."""
    (run,) = sweep.runs()
    began(run, "100", ended="interrupted")
    commands.says("100", "FAILED", status=status)
    assert reconcile(sweep) == {"a": "killed"}


@pytest.mark.parametrize(("kind", "code"), [("disk_full", 73), ("io_error", 74)])
def test_the_exit_code_tells_a_failure_that_could_not_be_written(
    sweep: SweepDirectory, commands: Commands, kind: str, code: int
) -> None:
    (run,) = sweep.runs()
    began(run, "100")
    commands.says("100", "FAILED", status=code << 8)
    assert reconcile(sweep) == {"a": kind}
    assert "could not be written" in failure_of(sweep)[1]
    assert Job("100", "FAILED", code=f"{code}:0").exited(code)  # as sacct writes it


def test_a_failure_that_status_cannot_write_either_is_shown(
    sweep: SweepDirectory, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunDirectory, "write", full)
    commands.says("100", "FAILED", status=73 << 8)
    [shown], _ = read(sweep)
    assert (shown.state, shown.note) == ("failed", "disk_full: the failure could not be written")


def test_cancel_reaches_the_runs_while_slurm_is_away(
    sweep: SweepDirectory, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    away = 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1'
    for name in ("squeue", "scancel"):
        commands.program(name, away)
    cancel("mine", runs=str(sweep.path.parent))
    (run,) = sweep.runs()
    assert run.cancel.exists()
    said = capsys.readouterr()
    assert "cancelling 1 run of mine" in said.out
    assert "a job that begins later finds its runs cancelled" in said.err


def test_an_accounting_that_hangs_is_asked_once_and_said(
    sweep: SweepDirectory,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(queue, "ACCOUNTING_SECONDS", 0.2)
    monkeypatch.setattr(queue, "_hung", float("-inf"))
    commands.program("sacct", "echo asked >> hanging; exec sleep 30")
    commands.forgets("100")
    for _ in range(2):
        assert Slurm(sweep).tasks()["a"].job is None
    assert (commands.folder / "hanging").read_text().split() == ["asked"]
    assert [r.message for r in caplog.records] == [
        "SLURM does not answer (sacct, 0.2 s): what only accounting knows is not shown"
    ]
    monkeypatch.setattr(queue, "QUIET_SECONDS", 0.1)
    with pytest.raises(queue.NoAnswer):
        queue.command("sacct", seconds=0.2)
    assert caplog.messages[1:] == ["waiting for SLURM (sacct), at most 0.2 s"]


def test_a_suspended_job_is_not_at_work(sweep: SweepDirectory, commands: Commands) -> None:
    (run,) = sweep.runs()
    with RunLease(run):
        commands.says("100", "SUSPENDED")
        (shown,) = sweep_status(sweep, queued_runs(sweep))
        assert (shown.state, "suspended" in shown.note) == ("queued", True)
        commands.says("100", "RUNNING")
        (shown,) = sweep_status(sweep, queued_runs(sweep))
        assert shown.state == "running"
