"""The parts of the SLURM launcher that need no cluster: settings, arrays, scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import UserError
from fewstep.experiments.rundir import SweepDirectory
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm import queue
from fewstep.sweeps.slurm.chunks import Wanted, chunks
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import outside_of_jobs, scripts


def test_settings_take_the_types_they_have() -> None:
    made = SlurmSettings.parse(
        {
            "partition": "gpu",
            "hours": 2,
            "max_parallel": 4.0,
            "setup": ["module load cuda"],
            "options": {"mail-type": "FAIL"},
            "account": 12,
            "collect": False,
        }
    )
    assert made.hours == 2.0
    assert made.max_parallel == 4
    assert made.account == "12"
    assert made.setup == ("module load cuda",)
    assert made.options == {"mail-type": "FAIL"}
    assert made.collect is False
    assert SlurmSettings.parse({"setup": "a\nb"}).setup == ("a", "b")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"partitoin": "x"}, "did you mean 'partition'"),
        ({"hours": "two"}, "slurm.hours takes a number, got 'two'"),
        ({"hours": 0}, "slurm.hours must be greater than 0"),
        ({"runs_per_job": 0}, "slurm.runs_per_job must be at least 1"),
        ({"runs_per_job": 1.5}, "slurm.runs_per_job takes a whole number"),
        ({"setup": 3}, "slurm.setup takes a list of strings"),
        ({"options": ["x"]}, "slurm.options takes a mapping"),
        ({"collect": "no"}, "slurm.collect takes true or false"),
        ({"options": {"array": "0-3"}}, "slurm.options.array is not to be set"),
    ],
)
def test_bad_settings_are_told_in_a_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SlurmSettings.parse(values)


SMALL, LARGE = Resources(cpus=1), Resources(cpus=8, gpus=4, hours=24)


def test_runs_that_want_the_same_share_arrays() -> None:
    wanted = [Wanted(f"r{i}", None, LARGE if i == 3 else SMALL) for i in range(7)]
    made = chunks(wanted, SlurmSettings(runs_per_job=2), limit=2)
    assert [c.tasks for c in made] == [
        (("r0", "r1"), ("r2", "r4")),
        (("r5", "r6"),),
        (("r3",),),  # several processes: a task of its own
    ]
    assert [c.resources for c in made] == [SMALL, SMALL, LARGE]


def test_students_wait_for_their_own_teacher_alone() -> None:
    wanted = [
        Wanted("s0", "t0", SMALL),
        Wanted("t0", None, SMALL),
        Wanted("t1", None, SMALL),
        Wanted("s1", "t1", SMALL),
        Wanted("ss1", "s1", SMALL),
        Wanted("other", None, SMALL),
        Wanted("late", "running", SMALL),  # its teacher is in a job of an earlier submission
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


def test_a_job_asks_for_all_runs_that_are_at_work_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    srun = tmp_path / "srun"
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = SlurmSettings(runs_per_job=3, at_a_time=2)
    wanted = [Wanted(f"r{i}", None, Resources(cpus=4, gpus=0.5, memory_gb=10)) for i in range(4)]
    (array,) = chunks(wanted, settings, limit=10)
    assert array.at_once(settings) == 2
    [(_, script)] = scripts(SweepDirectory(tmp_path), [array], settings)
    asked = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    # two runs of 4 cores, half a GPU and 10^10 bytes
    assert {"#SBATCH --cpus-per-task=8", "#SBATCH --gpus-per-node=1"} <= asked
    assert "#SBATCH --mem=19074M" in asked
    (single,) = chunks(wanted[:1], settings, limit=10)
    assert single.at_once(settings) == 1


def test_a_process_for_each_gpu_of_each_node() -> None:
    assert Resources().processes == 1
    assert Resources(gpus=0.5).processes == 1
    assert Resources(nodes=2).processes == 2
    assert Resources(nodes=2, gpus=4).processes == 8


def test_a_jobs_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    monkeypatch.setenv("SUBMITIT_FOLDER", "there")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with outside_of_jobs():
        assert "SLURM_MEM_PER_NODE" not in os.environ
        assert "SUBMITIT_FOLDER" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm.conf"
    assert os.environ["SLURM_MEM_PER_NODE"] == "100"


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not queue.available()
    with pytest.raises(UserError, match="no SLURM on this machine"):
        queue.array_limit()
    assert queue.jobs("name", ["1"]) is None
    assert queue.jobs("name", []) == {}
