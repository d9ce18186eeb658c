"""The parts of the SLURM launcher that need no cluster: settings, arrays, scripts."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import TINY, finish, start
from helpers.slurm_commands import Commands, sweep_of

from fewstep.cli.commands.sweep import sweep
from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.sweeps.definition.parse import Sweep
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launch_record import load_launch_record
from fewstep.sweeps.launcher import launcher
from fewstep.sweeps.plan import plan
from fewstep.sweeps.slurm import squeue as queue
from fewstep.sweeps.slurm import submission
from fewstep.sweeps.slurm.arrays import Chunk, RunToSubmit, chunks
from fewstep.sweeps.slurm.sbatch import executor
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import FOLDER, Slurm

slurm_settings = partial(launcher, "slurm")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def test_settings_take_the_types_they_have() -> None:
    made = slurm_settings(
        {
            "partition": "gpu",
            "hours": 2,
            "max_parallel": 4.0,
            "setup": ["module load cuda"],
            "options": {"mail-type": "FAIL"},
            "account": 12,
            "finalize": False,
        }
    )
    assert made.hours == 2.0
    assert made.max_parallel == 4
    assert made.account == "12"
    assert made.setup == ("module load cuda",)
    assert made.options == {"mail-type": "FAIL"}
    assert made.finalize is False
    assert slurm_settings({"setup": "a\nb"}).setup == ("a", "b")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"partitoin": "x"}, "did you mean 'partition'"),
        ({"hours": "two"}, "slurm.hours must be a number, got 'two'"),
        ({"hours": 0}, "slurm.hours must be greater than 0"),
        ({"runs_per_job": 0}, "slurm.runs_per_job must be at least 1"),
        ({"runs_per_job": 1.5}, "slurm.runs_per_job must be a whole number"),
        ({"setup": 3}, "slurm.setup must be a list"),
        ({"options": ["x"]}, "slurm.options must be a mapping"),
        ({"finalize": "no"}, "slurm.finalize must be true or false"),
        ({"options": {"array": "0-3"}}, "slurm.options.array cannot be set"),
        ({"options": {"time": "60"}}, "slurm.options.time cannot be set"),
    ],
)
def test_bad_settings_are_told_in_a_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        slurm_settings(values)


SMALL, LARGE = Resources(cpus=1), Resources(cpus=8, gpus=4, hours=24)


def test_runs_that_want_the_same_share_arrays() -> None:
    wanted = [RunToSubmit(f"r{i}", None, LARGE if i == 3 else SMALL) for i in range(7)]
    made = chunks(wanted, SlurmSettings(runs_per_job=2), limit=2)
    assert [c.tasks for c in made] == [
        (("r0", "r1"), ("r2", "r4")),
        (("r5", "r6"),),
        (("r3",),),  # several processes: a task of its own
    ]
    assert [c.resources for c in made] == [SMALL, SMALL, LARGE]


def test_students_wait_for_their_own_teacher_alone() -> None:
    wanted = [
        RunToSubmit("s0", "t0", SMALL),
        RunToSubmit("t0", None, SMALL),
        RunToSubmit("t1", None, SMALL),
        RunToSubmit("s1", "t1", SMALL),
        RunToSubmit("ss1", "s1", SMALL),
        RunToSubmit("other", None, SMALL),
        RunToSubmit("late", "running", SMALL),  # its teacher is in a job of an earlier submission
    ]
    made = chunks(wanted, SlurmSettings(runs_per_job=10), limit=100)
    order = {key: i for i, c in enumerate(made) for keys in c.tasks for key in keys}
    assert order["t0"] < order["s0"]
    assert order["t1"] < order["s1"] < order["ss1"]
    after = {keys: c.teacher for c in made for keys in c.tasks}
    assert after == {
        ("t0",): None,
        ("t1",): None,
        ("other",): None,
        ("s0",): "t0",
        ("s1",): "t1",
        ("ss1",): "s1",
        ("late",): "running",
    }


@pytest.mark.parametrize(
    ("at_most", "shares"),
    [(None, [None] * 4), (10, [3, 3, 2, 2]), (11, [4, 3, 2, 2]), (4, [1, 1, 1, 1]), (1, [1] * 4)],
)
def test_arrays_share_what_may_run_at_once(
    tmp_path: Path, at_most: int | None, shares: list[int | None]
) -> None:
    """Ten runs in arrays of four, and two that ask for more than the others."""
    wanted = [RunToSubmit(f"r{i}", None, Resources()) for i in range(10)]
    wanted += [RunToSubmit(f"big{i}", None, Resources(cpus=4)) for i in range(2)]
    made = chunks(wanted, SlurmSettings(max_parallel=at_most), limit=4)
    assert [len(chunk.tasks) for chunk in made] == [4, 4, 2, 2]
    assert [chunk.max_parallel for chunk in made] == shares


def test_a_job_asks_for_all_runs_that_are_at_work_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    srun = tmp_path / "srun"
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = SlurmSettings(runs_per_job=3, at_a_time=2)
    wanted = [
        RunToSubmit(f"r{i}", None, Resources(cpus=4, gpus=0.5, memory_gb=10)) for i in range(4)
    ]
    (array,) = chunks(wanted, settings, limit=10)
    assert array.at_once(settings) == 2
    [(_, script)] = Slurm(SweepDirectory(tmp_path), settings).scripts([array])
    asked = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    # two runs of 4 cores, half a GPU and 10^10 bytes
    assert {"#SBATCH --cpus-per-task=8", "#SBATCH --gpus-per-node=1"} <= asked
    assert "#SBATCH --mem=19074M" in asked
    [started] = [line for line in script.splitlines() if line.startswith("srun")]
    assert "--cpus-per-task=8" in started.split()
    (single,) = chunks(wanted[:1], settings, limit=10)
    assert single.at_once(settings) == 1


@pytest.mark.parametrize(
    ("ends", "restarts", "again"),
    [
        ("kill -USR2 $$", "0", True),
        ("kill -USR2 $$", "20", False),  # it cannot even begin: settled, and left in the end
        ("exit 255", "0", False),  # it has queued the job again itself
        ("exit 127", "0", False),
        ("exit 0", "0", False),
    ],
)
def test_a_job_that_dies_of_what_should_have_it_save_is_queued_again(
    commands: Commands, tmp_path: Path, ends: str, restarts: str, again: bool
) -> None:
    commands.program("srun", f"sh -c '{ends}'; exit $?")  # signal n: 128 + n, as srun's
    commands.program("scontrol", 'echo "$@" >> told')
    made = executor(tmp_path, "name", SlurmSettings(setup=("set -e",)), Chunk((("a",),), SMALL))
    told = {**os.environ, "SLURM_JOB_ID": "100", "SLURM_RESTART_COUNT": restarts}
    done = subprocess.run(["bash", "-c", made.script(1)], env=told)
    assert (commands.folder / "told").exists() is again
    expected = 140 if "USR2" in ends else int(ends.split()[1])
    assert done.returncode == expected


def test_logs_lie_where_they_are_said_to_whatever_the_run_root_is_called(
    commands: Commands, tmp_path: Path
) -> None:
    def options(name: str, tasks: int) -> str:
        folder = tmp_path / name / "token"
        chunk = Chunk((("a",),) * tasks, SMALL)
        return executor(folder, "n", SlurmSettings(), chunk).script(tasks)

    there = f"{tmp_path}/50%% of it/token"  # as SLURM has a %
    assert f"#SBATCH --output='{there}/%A_%a_0_log.out'" in options("50% of it", 3)
    last = options("50% of it", 1).rpartition("--output=")[2]
    assert last.startswith(f"{there}/%j_%t_log.out' ")
    assert "%%" not in options("runs", 3)
    for name, tag in {"100%train": "%t", "%A": "%A"}.items():
        with pytest.raises(UserError, match=f"the run root has {tag} in its path"):
            options(name, 1)


@pytest.mark.parametrize(
    ("settings", "resources", "told"),
    [
        ({"hours": 0.03, "save_seconds": 120}, {}, r"slurm.hours=0.03 gives a job 120 s"),
        ({"hours": 4, "save_seconds": 300}, {"hours": 0.05}, r"resources.hours=0.05 .* 180 s"),
        ({"hours": 0.0334, "save_seconds": 120}, {}, None),  # whole minutes: 3 of them
        ({"hours": 0.01, "save_seconds": 120}, {"hours": 1}, None),
    ],
)
def test_a_limit_no_longer_than_what_saving_takes_is_refused(
    settings: dict[str, Any], resources: dict[str, Any], told: str | None
) -> None:
    parsed, asked = SlurmSettings(**settings), Resources(**resources)
    with pytest.raises(UserError, match=told) if told else nullcontext():
        parsed.check_hours([Resources(hours=24), asked])


def test_nothing_is_submitted_with_a_limit_that_is_refused(
    tmp_path: Path, commands: Commands
) -> None:
    sweep = sweep_of(tmp_path, a=None, b=None)
    slurm = Slurm(sweep, SlurmSettings(hours=0.01))
    with pytest.raises(UserError, match=r"slurm.save_seconds=120 .* more than 0.0333 hours"):
        slurm.submit(sweep.runs(), {"a": Resources(hours=1), "b": Resources()})
    assert commands.submitted() == 0
    (tmp_path / "mine.yaml").write_text("slurm: {hours: 0.01}\naxes: {case: [{label: a}]}\n")
    words = ["sweep", str(tmp_path / "mine.yaml"), *TINY, "--launcher", "slurm", "--plan"]
    done = finish(start(*words, cwd=tmp_path))
    assert done.returncode == 2
    assert "slurm.hours=0.01 gives a job 60 s" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_process_for_each_gpu_of_each_node() -> None:
    assert Resources().processes == 1
    assert Resources(gpus=0.5).processes == 1
    assert Resources(nodes=2).processes == 2
    assert Resources(nodes=2, gpus=4).processes == 8


def test_a_plan_says_what_becomes_of_a_share_of_a_gpu_and_what_collects(
    tmp_path: Path, commands: Commands, write: Callable[..., Sweep]
) -> None:
    text = "resources: {gpus: 0.5}\naxes: {training.steps: [1, 2, 3]}\n"
    made = plan(write(text).with_overrides([*TINY, ("runs", str(tmp_path / "runs"))]))
    request = made.request(made.to_do)
    told = launcher("slurm", {"runs_per_job": 3, "at_a_time": 3}).preview(request)
    assert "0.5 GPUs per run: SLURM has whole GPUs, a job asks for 2" in told
    assert "#SBATCH --gpus-per-node=2" in told[told.index("an array of 1 task, 3 runs") + 2]
    assert "fewstep.sweeps.slurm.finalize" in told[-1]
    with pytest.warns(DeprecationWarning, match=r"slurm\.collect is called slurm\.finalize"):
        told = launcher("slurm", {"gres": "gpu:1", "collect": False}).preview(request)
    assert not any("GPUs per run" in line or "slurm.finalize" in line for line in told)


def test_the_shape_of_the_arrays_and_how_often_jobs_reach_their_limit(
    tmp_path: Path, commands: Commands, write: Callable[..., Sweep]
) -> None:
    """Three runs of 4,750 s take 14,250 s: three turns of the 7,080 s that two hours leave."""
    text = "resources: {gpus: 2, hours: 2}\naxes: {training.steps: [1, 2, 3, 4, 5]}\n"
    made = plan(write(text).with_overrides([*TINY, ("runs", str(tmp_path / "runs"))]))
    seconds = dict.fromkeys((run.directory.key for run in made.runs), 4750.0)
    request = made.request(made.to_do, seconds)
    assert launcher("slurm", {"runs_per_job": 3}).summary(request) == [
        "SLURM: 1 array: 5 jobs of 1 run (each: 2 GPUs, at most 2 h)"  # several processes: alone
    ]
    single = replace(request, resources=dict.fromkeys(seconds, Resources(gpus=1, hours=2)))
    assert launcher("slurm", {"runs_per_job": 3}).summary(single) == [
        "SLURM: 1 array: 1 job of 3 runs (each: 1 GPU, at most 2 h), "
        "1 job of 2 runs (each: 1 GPU, at most 2 h)",
        "  the longest job reaches its limit, and is requeued, 2 times",
    ]
    both = launcher("slurm", {"runs_per_job": 3, "at_a_time": 3}).summary(single)
    assert both == [
        "SLURM: 1 array: 1 job of 3 runs (each: 3 GPUs, at most 2 h), "
        "1 job of 2 runs (each: 3 GPUs, at most 2 h)"
    ]


def test_a_refusal_is_one_line(
    tmp_path: Path, commands: Commands, capfd: pytest.CaptureFixture[str]
) -> None:
    commands.program(
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: no' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name' >&2\nexit 1",
    )
    sweep = sweep_of(tmp_path, a=None)
    told = "^sbatch refused the sweep's jobs: Batch job submission failed: Invalid partition name$"
    with pytest.raises(UserError, match=told):
        Slurm(sweep, SlurmSettings()).submit(sweep.runs(), {"a": Resources()})
    assert capfd.readouterr() == ("", "")


def test_retry_goes_by_settings_that_slurm_took(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: {data: gaussians}")
    launch = partial(sweep, "mine.yaml", launcher="slurm")
    took = (commands.folder / "sbatch").read_text().split("\n", 2)[2]
    commands.program("sbatch", "echo 'sbatch: error: Invalid partition name' >&2\nexit 1")
    with pytest.raises(UserError, match="Invalid partition name"):
        launch(["slurm.partition=no"])
    assert not Path("runs/mine/launch.json").exists()
    commands.program("sbatch", took)
    assert launch(["slurm.partition=low"]) == 0
    name, settings, _ = load_launch_record(SweepDirectory(Path("runs/mine")))
    assert (name, settings) == ("slurm", {"partition": "low"})
    record = Path("runs/mine/launch.json")
    for content in (b'{"a": ', b'{"resources": {"a": 1}}', b'{"settings": "a"}'):  # damaged
        record.write_bytes(content)
        with pytest.raises(UserError, match=r"launch\.json is not .* --launcher NAME"):
            load_launch_record(SweepDirectory(Path("runs/mine")))
        assert launch(["slurm.partition=low"]) == 0  # which writes it again
        assert load_launch_record(SweepDirectory(Path("runs/mine")))[0] == "slurm"
    record.unlink()  # whoever does so does not want it to run here
    with pytest.raises(UserError, match=r"no launch\.json.*`fewstep sweep mine --launcher slurm`"):
        load_launch_record(SweepDirectory(Path("runs/mine")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no SLURM on this machine"):
        launch(["name=other"])
    assert not Path("runs/other").exists()


def test_who_submits_at_the_same_time_waits_and_in_the_end_says_for_whom(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    (sweep.path / FOLDER).mkdir()
    monkeypatch.setattr(submission, "LOCK_SECONDS", 0.05)
    with (sweep.path / FOLDER / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"another process submits mine: {held.name} stayed"):
            Slurm(sweep).submit(sweep.runs(), {"a": Resources()})
    assert commands.submitted() == 0


def test_nothing_but_the_sweep_says_what_slurm_is_asked(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a job that submits, nor variables that win over a script or hide jobs."""
    variables = {
        *("SLURM_MEM_PER_NODE", "SUBMITIT_FOLDER", "SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE"),
        *("SBATCH_ARRAY_INX", "SQUEUE_STATES", "SACCT_FEDERATION", "SCANCEL_USER"),
    }
    for name in (*variables, "SLURM_CONF"):
        monkeypatch.setenv(name, "there")
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        file = commands.folder / name
        script = file.read_text().split("\n", 2)[2] if file.exists() else "exit 0"
        commands.program(name, f"env | sed 's/^/{name} /' >> seen; {script.strip()}")
    sweep = sweep_of(tmp_path, a=None)
    slurm = Slurm(sweep, SlurmSettings())
    slurm.submit(sweep.runs(), {"a": Resources()})
    slurm.tasks()
    queue.cancel(["100"])
    seen = {line.split("=")[0] for line in (commands.folder / "seen").read_text().splitlines()}
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        assert f"{name} SLURM_CONF" in seen
        assert not {f"{name} {variable}" for variable in variables} & seen
    assert all(os.environ[name] == "there" for name in variables)


def test_the_usual_account_is_taken_from_sbatchs_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "usual")
    monkeypatch.setenv("SBATCH_QOS", "")
    made = slurm_settings({"partition": "gpu"})
    assert (made.account, made.partition, made.qos) == ("mine", "gpu", None)
    assert slurm_settings(asdict(SlurmSettings())).account is None  # a collector's are settled


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not queue.available()
    with pytest.raises(UserError, match="no SLURM on this machine"):
        queue.array_limit()
    assert queue.jobs("name", ["1"]) is None
    assert queue.jobs("name", []) == {}
