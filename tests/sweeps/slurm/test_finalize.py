"""What a finalizer submits again, and which jobs get a finalizer; no cluster is needed for that."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.slurm_commands import LONG_AGO, Commands, began, long_ago, sweep_of

from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import Json, read_json, write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launch_record import save_launch_record
from fewstep.sweeps.launcher import LaunchRequest, launcher
from fewstep.sweeps.slurm import squeue as queue
from fewstep.sweeps.slurm.finalize import lost_teacher, resubmit
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.squeue import submit_room
from fewstep.sweeps.slurm.submission import FOLDER, NoRoom, Slurm


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def submit(sweep: SweepDirectory, *keys: str, **settings: Any) -> list[str | None]:
    """The jobs of those runs, or of all; a job for each but where ``runs_per_job`` says more."""
    runs = [run for run in sweep.runs() if not keys or run.key in keys]
    made = Slurm(sweep, SlurmSettings(**settings))
    return [s.job for s in made.submit(runs, {run.key: Resources() for run in runs})]


def finalizers(sweep: SweepDirectory) -> list[Json]:
    """Their manifests, oldest first."""
    found = [read_json(file) or {} for file in (sweep.path / FOLDER).glob("*/manifest.json")]
    return sorted((m for m in found if m["kind"] == "collect"), key=lambda m: int(m["job"] or 0))


def run_of(sweep: SweepDirectory, key: str) -> RunDirectory:
    return RunDirectory(sweep.path / key)


def manifest(**resources: Resources) -> Json:
    """Of a finalizer that collects, and submits without one after it."""
    settings = SlurmSettings(partition="mine", finalize=False)
    told = {key: asdict(r) for key, r in resources.items()}
    return {"settings": asdict(settings), "resources": told}


# ------------------------------------------------------------------------- what comes again


def test_a_lost_run_comes_again_with_what_its_own_submission_asked_for(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    [run] = sweep.runs()
    mine = Slurm(sweep, SlurmSettings(partition="mine", save_seconds=33))
    mine.submit([run], {"a": Resources(cpus=3, memory_gb=2)})
    # meanwhile somebody launches the sweep on another partition, or here
    other = SlurmSettings(partition="other")
    save_launch_record(sweep, "slurm", asdict(other), {"a": Resources(cpus=7)})
    began(run, "100")
    commands.says("100", "NODE_FAIL")
    [own] = finalizers(sweep)
    assert resubmit(sweep, own) == ["102"]
    script = commands.script("102")
    for option in ("partition=mine", "cpus-per-task=3", "mem=1908M", "signal=USR2@33"):
        assert f"#SBATCH --{option}\n" in script
    after = finalizers(sweep)[-1]  # the finalizer after it knows the same
    assert (after["settings"], after["resources"]) == (own["settings"], own["resources"])
    assert after["of"] == ["102"]


def test_only_the_lost_come_again(tmp_path: Path, commands: Commands) -> None:
    ends = {
        "lost": ("NODE_FAIL", None),
        "late": ("TIMEOUT", None),
        "preempted": ("PREEMPTED", None),
        "faulty": ("FAILED", "bug"),
        "cancelled": ("CANCELLED", None),
        "greedy": ("OUT_OF_MEMORY", "killed"),
        "waiting": ("PENDING", None),
    }
    sweep = sweep_of(tmp_path, **dict.fromkeys(ends))
    for i, (key, (state, own)) in enumerate(ends.items()):
        submit(sweep, key, finalize=False)
        run = run_of(sweep, key)
        began(run, str(100 + i))
        if own is not None:
            run.write("failure", failures.record(run, own, "its own word"))
        commands.says(str(100 + i), state)
    [job] = resubmit(sweep, manifest())
    [made] = [s for s in Slurm(sweep, SlurmSettings()).submissions() if s.job == job]
    assert made.tasks == (("lost",), ("late",), ("preempted",))


def removed(commands: Commands, *jobs: str) -> None:
    for job in jobs:
        commands.says(job, "CANCELLED", nodes="", reason=queue.IN_VAIN)


def test_students_come_again_with_a_teacher_that_was_lost(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(
        tmp_path, pupil="student", student="teacher", teacher=None, other="fine", fine=None
    )
    submit(sweep, finalize=False)
    of = {key: job.id for key, job in Slurm(sweep, SlurmSettings()).queued().items()}
    began(run_of(sweep, "teacher"), of["teacher"])
    commands.says(of["teacher"], "NODE_FAIL")
    removed(commands, of["student"], of["pupil"])
    again = resubmit(sweep, manifest())
    assert len(again) == 3  # the others are in the queue
    after = dict(zip(("teacher", "student", "pupil"), again, strict=True))
    assert "dependency" not in commands.script(after["teacher"])
    assert f"--dependency=afterok:{after['teacher']}\n" in commands.script(after["student"])
    assert f"--dependency=afterok:{after['student']}\n" in commands.script(after["pupil"])


@pytest.mark.parametrize("how", ["scancel", "fewstep cancel"])
def test_a_student_that_somebody_cancelled_does_not(
    tmp_path: Path, commands: Commands, how: str
) -> None:
    sweep = sweep_of(tmp_path, teacher=None, student="teacher")
    submit(sweep, finalize=False)
    began(run_of(sweep, "teacher"), "100")
    commands.says("100", "NODE_FAIL")
    commands.says("101", "CANCELLED", nodes="", reason="Dependency")
    if how == "fewstep cancel":
        removed(commands, "101")
        run_of(sweep, "student").cancel.touch()
    assert resubmit(sweep, manifest()) == ["102"]
    assert set(Slurm(sweep, SlurmSettings()).queued()) == {"teacher"}


def test_who_lost_teacher_a_lost_teacher(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, teacher=None, student="teacher")
    student = run_of(sweep, "student")
    assert lost_teacher(student, ["teacher"])
    assert not lost_teacher(student, ["another"])
    assert not lost_teacher(run_of(sweep, "teacher"), ["teacher"])
    for kind, waits in [("no_teacher", True), ("cancelled", False), ("bug", False)]:
        student.write("failure", failures.record(student, kind, "why"))
        assert lost_teacher(student, ["teacher"]) is waits
    student.remove("failure")
    began(student, "7")
    assert not lost_teacher(student, ["teacher"])  # it is its own loss


def test_one_whose_jobs_are_lost_before_it_begins_is_left_in_the_end(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    [run] = sweep.runs()
    [job] = submit(sweep, finalize=False)
    for _ in range(failures.MAX_FRUITLESS_ATTEMPTS - 1):
        commands.says(job, "NODE_FAIL")
        long_ago(sweep)
        [job] = resubmit(sweep, manifest())
    commands.says(job, "RUNNING")
    assert resubmit(sweep, manifest()) == []
    commands.says(job, "NODE_FAIL")
    assert resubmit(sweep, manifest()) == []
    slurm = Slurm(sweep, SlurmSettings())
    assert slurm.never_began(run) == failures.MAX_FRUITLESS_ATTEMPTS
    began(run, "100", when=LONG_AGO)
    assert slurm.never_began(run) == failures.MAX_FRUITLESS_ATTEMPTS - 1
    began(run, job, when=LONG_AGO)  # the ones before do not count any more
    assert slurm.never_began(run) == 0
    assert len(resubmit(sweep, manifest())) == 1


def test_of_jobs_of_the_same_second_the_one_with_the_higher_number_is_newer(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    made = {"name": "fewstep-mine", "tasks": [["a"]], "kind": "runs", "created": LONG_AGO}
    for token, job in [("z", "9"), ("m", "10"), ("a", "11")]:
        write_json(sweep.path / FOLDER / token / "manifest.json", {**made, "job": job})
    assert [s.job for s in Slurm(sweep, SlurmSettings()).submissions()] == ["9", "10", "11"]


# ------------------------------------------------------------------------- who collects


def test_jobs_without_a_finalizer_get_one_with_the_next(tmp_path: Path, commands: Commands) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None, c=None)
    submit(sweep, "a", finalize=False)  # as one who died before it came to that
    assert submit(sweep, "b") == ["101"]
    assert [m["of"] for m in finalizers(sweep)] == [["100", "101"]]
    assert "--dependency=afterany:100:101\n" in commands.script("102")
    assert submit(sweep, "a") == []  # nothing new, and all are covered
    assert submit(sweep, "c") == ["103"]
    assert [m["of"] for m in finalizers(sweep)] == [["100", "101"], ["103"]]


def test_a_finalizer_that_nobody_noted_is_found(tmp_path: Path, commands: Commands) -> None:
    sweep = sweep_of(tmp_path, a=None)
    submit(sweep)
    for file in (sweep.path / FOLDER).glob("*/manifest.json"):
        write_json(file, {**(read_json(file) or {}), "job": None})
    assert submit(sweep) == []
    assert [(m["job"], m["of"]) for m in finalizers(sweep)] == [("101", ["100"])]


def test_jobs_whose_finalizer_is_gone_get_another(tmp_path: Path, commands: Commands) -> None:
    sweep = sweep_of(tmp_path, a=None)
    submit(sweep)
    commands.says("101", "CANCELLED", nodes="")
    submit(sweep)
    assert [m["of"] for m in finalizers(sweep)] == [["100"], ["100"]]
    commands.says("100", "COMPLETED")
    commands.says("102", "COMPLETED")
    submit(sweep, "nothing")
    assert len(finalizers(sweep)) == 2  # what is over needs none


def test_a_finalizer_that_submits_is_none_for_what_it_submits(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None)
    submit(sweep)  # an array, 100, and its finalizer, 101
    began(run_of(sweep, "a"), "100_0")
    commands.says("100_0", "NODE_FAIL")
    commands.says("101", "RUNNING")
    # it is at work, though task 1 came back into the queue since: it covers that no more
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    assert resubmit(sweep, finalizers(sweep)[0]) == ["102"]
    assert finalizers(sweep)[-1]["of"] == ["100", "102"]


def test_with_no_finalizer_asked_for_there_is_none(tmp_path: Path, commands: Commands) -> None:
    sweep = sweep_of(tmp_path, a=None)
    submit(sweep, finalize=False)
    assert commands.submitted() == 1
    assert finalizers(sweep) == []


def test_a_finalizer_asks_for_little_whatever_the_runs_ask_for(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    asked = {"mem_per_cpu": "60G", "gpus-per-task": 1, "exclusive": True, "nodelist": "node7"}
    kept = {"mail-type": "FAIL", "exclude": "node9", "reservation": "ours"}
    settings = SlurmSettings(
        partition="gpu", account="ml", qos="low", constraint="a100", gres="gpu:a100:4",
        save_seconds=7200, setup=("module load cuda",), options={**asked, **kept},
        srun=("--gpus-per-task=1", "--container-image=mine.sqsh"),
    )  # fmt: skip
    runs = {"a": Resources(cpus=64, gpus=4, nodes=2, memory_gb=500)}
    slurm = Slurm(sweep, settings)
    slurm.submit(sweep.runs(), runs)
    for text in (commands.script("101"), Slurm(sweep, settings).finalizer_script()):
        told = {line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line}
        where = {"partition=gpu", "account=ml", "qos=low", "constraint=a100"}
        own = {"mail-type=FAIL", "exclude=node9", "reservation=ours", "requeue", "time=60"}
        size = {"cpus-per-task=1", "mem=1908M", "nodes=1", "ntasks-per-node=1", "signal=USR2@60"}
        assert where | own | size <= told
        others = {option.split("=")[0] for option in told - where - own - size}
        ours = {"comment", "dependency", "job-name", "kill-on-invalid-dep", "open-mode", "output"}
        assert others == ours
        assert "module load cuda" in text
        assert "--container-image=mine.sqsh" in text
        assert "--gpus-per-task" not in text
        assert "fewstep.sweeps.slurm.finalize" in text
    [own_manifest] = finalizers(sweep)
    assert own_manifest["settings"]["gres"] == "gpu:a100:4"  # for the runs that it submits again
    assert "--gres=gpu:a100:4" in commands.script("100")


LIMITED = """
case "$*" in
    *DefaultAccount*) echo "ml";;
    *GrpSubmit*) echo "ml||$(cat group 2> /dev/null)"; echo "ml|me|1"; echo "other||1";;
    *assoc*) echo "ml||normal"; echo "other|1|normal";;
    *qos*) echo "normal|$(cat limit)"; echo "low|99";;
esac
"""


def limited(commands: Commands, jobs: int) -> None:
    """A limit of so many submitted jobs, as MaxSubmitJobsPerUser of a QOS; sbatch holds to it."""
    commands.program("sacctmgr", LIMITED)
    (commands.folder / "limit").write_text(str(jobs))


def test_what_a_limit_has_no_room_for_is_submitted_by_the_finalizer(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None, c=None, d=None, e=None, student="a", other="e")
    limited(commands, 4)
    settings, asked = SlurmSettings(account="ml"), {run.key: Resources() for run in sweep.runs()}
    done = Slurm(sweep, settings).submit(sweep.runs(), asked)
    assert sum(len(s.tasks) for s in done) == 3  # and the finalizer
    assert len(done.waiting) == 4
    assert {"student", "other"} <= set(done.waiting)  # not before their teachers
    assert "MaxSubmitJobs" in done.refused
    [collector] = finalizers(sweep)
    assert set(collector["waiting"]) == set(done.waiting)
    for job in ("100", "101", "102", "100_0", "100_1", "100_2"):
        if (commands.folder / "queue" / job).exists():
            commands.says(job, "COMPLETED")
    for run in sweep.runs():
        if run.key not in done.waiting:
            run.write("result", {"provenance": {}})
    before = commands.submitted()
    resubmit(sweep, collector)
    assert commands.submitted() > before
    pending = set(Slurm(sweep, settings).queued())
    assert pending <= set(done.waiting)
    assert pending


@pytest.mark.parametrize("account", ["ml", None])
def test_limits_of_the_account_that_is_used_count(
    tmp_path: Path, commands: Commands, account: str | None
) -> None:
    limited(commands, 100)
    assert submit_room(account, None) == (100, 100)
    (commands.folder / "group").write_text("5")
    assert submit_room(account, None) == (5, 5)
    sweep = sweep_of(tmp_path, a=None, b=None)
    Slurm(sweep, SlurmSettings(account=account)).submit(
        sweep.runs(), {run.key: Resources() for run in sweep.runs()}
    )
    assert submit_room(account, None) == (5, 2)
    commands.program("sacctmgr", "exit 1")
    assert submit_room(account, None) is None


def test_a_finalizer_waits_for_room_for_a_run_and_the_next_finalizer(
    tmp_path: Path, commands: Commands
) -> None:
    """The one before it may still write its report; another sweep may take the rest."""
    sweep = sweep_of(tmp_path, a=None, b=None)
    asked = {run.key: Resources() for run in sweep.runs()}
    slurm = Slurm(sweep, SlurmSettings())
    limited(commands, 3)
    for job in ("10", "11"):
        commands.says(job, "RUNNING")
    with pytest.raises(NoRoom, match="3 jobs may be submitted, and there is room for 1"):
        slurm.submit(sweep.runs(), asked, patient=True)
    assert commands.submitted() == 0
    commands.forgets("11")
    done = slurm.submit(sweep.runs(), asked, patient=True)
    assert (len(done.waiting), done.finalized) == (1, True)
    limited(commands, 2)  # of which it is one itself: waiting would be in vain
    commands.forgets("100")
    commands.forgets("101")
    done = slurm.submit(sweep.runs(), asked, patient=True)
    assert [len(s.tasks) for s in done] == [1]


@pytest.mark.parametrize(("limit", "others"), [(2, False), (3, True)])
def test_a_launch_promises_no_more_than_finalizers_can_do(
    tmp_path: Path, commands: Commands, limit: int, others: bool
) -> None:
    sweep = sweep_of(tmp_path, **dict.fromkeys("abcde"))
    limited(commands, limit)
    asked = {run.key: Resources() for run in sweep.runs()}
    outcome = launcher("slurm").launch(LaunchRequest.of(sweep.runs(), asked), lambda *told: None)
    [told] = [note for note in outcome.notes if "not submitted" in note]
    assert ("the finalizer submits them when the others have ended" in told) is others
    assert ("of 2 jobs, no finalizer can submit a run and the next finalizer" in told) is not others
    assert told.endswith("the same command submits them when started again")


def test_the_jobs_that_the_cluster_may_have_are_counted_of_all_users(
    tmp_path: Path, commands: Commands
) -> None:
    """For a job more than those, sbatch would wait for two minutes, and be refused."""
    sweep = sweep_of(tmp_path, **dict.fromkeys("abcdefgh"))
    commands.program("scontrol", "echo 'MaxJobCount             = 6'")
    commands.says("10", "COMPLETED")
    assert submit_room(None, None) == (5, 4)
    limited(commands, 9)
    assert submit_room("ml", None) == (5, 4)
    done = Slurm(sweep, SlurmSettings()).submit(
        sweep.runs(), {run.key: Resources() for run in sweep.runs()}
    )
    assert [len(s.tasks) for s in done] == [3]  # and the finalizer
    assert (len(done.waiting), done.finalized) == (5, True)
    assert "MaxJobCount" in done.refused


@pytest.mark.parametrize(
    "told",
    [
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Resource temporarily unavailable",
    ],
)
def test_a_limit_that_nobody_can_ask_for_is_found_by_halves(
    tmp_path: Path, commands: Commands, caplog: pytest.LogCaptureFixture, told: str
) -> None:
    sweep = sweep_of(tmp_path, **dict.fromkeys("abcdefgh"))
    accepting = (commands.folder / "sbatch").read_text().partition("\n")[2]
    refusing = f'echo "sbatch: error: Batch job submission failed: {told}" >&2; exit 1'
    commands.program("sbatch", f'if grep -q "array=0-[3-9]" "$1"; then {refusing}; fi\n{accepting}')
    done = Slurm(sweep, SlurmSettings()).submit(
        sweep.runs(), {run.key: Resources() for run in sweep.runs()}
    )
    assert [len(s.tasks) for s in done] == [2]
    assert (len(done.waiting), done.finalized) == (6, True)
    assert told in done.refused
    assert [message.partition("; ")[2] for message in caplog.messages] == [
        "trying 4 tasks of 8",
        "trying 2 tasks of 4",
    ]


def test_one_damaged_file_keeps_no_other_run_from_being_submitted_again(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None)
    (sweep.path / "a/result.json").write_bytes(bytes(100))
    waiting = {**manifest(b=Resources()), "waiting": ["b"]}
    assert len(resubmit(sweep, waiting)) == 1
    assert set(Slurm(sweep, SlurmSettings()).queued()) == {"b"}


def test_a_refusal_half_way_leaves_what_was_submitted_to_a_finalizer(
    tmp_path: Path, commands: Commands
) -> None:
    """Of a limit that nobody can ask for: the second sbatch is refused."""
    sweep = sweep_of(tmp_path, a=None, b=None)
    accepting = (commands.folder / "sbatch").read_text().partition("\n")[2]
    refusing = 'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1'
    commands.program("sbatch", f"if [ $(cat last) = 100 ]; then {refusing}; fi\n{accepting}")
    asked = {"a": Resources(hours=1), "b": Resources(hours=2)}  # two arrays
    outcome = launcher("slurm").launch(LaunchRequest.of(sweep.runs(), asked), lambda *told: None)
    assert outcome.interrupted == ["b"]
    [told] = [note for note in outcome.notes if "not submitted" in note]
    assert "1 run and the finalizer (" in told
    assert "QOSMaxSubmitJobPerUserLimit" in told
    assert told.endswith(
        "; the same command submits them when started again"
    )  # and nobody else will
    commands.program("sbatch", accepting)
    again = Slurm(sweep, SlurmSettings()).submit(sweep.runs(), asked)  # the same command
    assert [s.tasks for s in again] == [(("b",),)]
    assert (again.refused, again.waiting) == ("", ())
    assert len(finalizers(sweep)) == 1
