"""SLURM's commands, but no cluster: they print what a real one would (tests/sweeps/recorded).

What a job does is the test's to say. ``sbatch`` takes every script, and has its jobs wait.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fewstep.experiments.store.json_files import read_json, write_json
from fewstep.experiments.store.lease import JOB
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.slurm.squeue import FIELDS
from fewstep.sweeps.slurm.submission import FOLDER

COMMANDS = {
    "srun": "exit 1",
    "squeue": 'echo "$@" >> asked; cat queue/* 2> /dev/null; exit 0',
    "sacct": "cat accounting || exit 1",
    "sacctmgr": "exit 1",
    "scontrol": 'echo "MaxArraySize            = 1001"',
    "sbatch": """
        job=$(($(cat last) + 1))
        echo $job > last
        cp "$1" scripts/$job
        comment=$(sed -n 's/^#SBATCH --comment=//p' "$1")
        tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        for id in $([ -z "$tasks" ] && echo $job || seq -f ${job}_%g 0 $tasks); do
            printf "$(cat row)" $id PENDING 0 "" $comment None 0 > queue/$id
        done
        echo "Submitted batch job $job"
    """,
}
WIDTHS = [int(field.split(":")[1]) for field in FIELDS.split(",")]
ROW = "".join(f"%-{width}s" for width in WIDTHS) + "\n"

LONG_AGO, LATER = "2001-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"


def sweep_of(folder: Path, **teachers: str | None) -> SweepDirectory:
    """A sweep with a run of each name; those that learn from another say from which."""
    sweep = SweepDirectory(folder / "mine")
    for key, teacher in teachers.items():
        path = None if teacher is None else str(sweep.path / teacher)
        write_json(sweep.path / key / "spec.json", {"key": key, "config": {"teacher": path}})
    plan = [{"key": key, "seed": 0, "title": key, "choices": {}} for key in teachers]
    write_json(sweep.path / "sweep.json", {"name": "mine", "runs": plan})
    return sweep


def long_ago(sweep: SweepDirectory) -> None:
    """Whatever was submitted was submitted then."""
    for file in (sweep.path / FOLDER).glob("*/manifest.json"):
        write_json(file, {**(read_json(file) or {}), "created": LONG_AGO})


def began(run: RunDirectory, job: str | None, when: str = LATER, **how: str) -> None:
    """An attempt of that job; of this machine's where there is none."""
    told = None if job is None else {"launcher": "slurm", "id": job, "restart": 0}
    run.record_attempt(f"{job} {when}", begun=when, job=told, **run.saved_work(), **how)


class Commands:
    """They are first on PATH. No accounting, until ``accounting`` says what there is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("queue", "scripts"):
            (folder / name).mkdir(parents=True)
        for name, script in COMMANDS.items():
            self.program(name, script)
        (folder / "last").write_text("99")
        (folder / "row").write_text(ROW.replace("\n", "\\n"))
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        for name in [name for name in os.environ if name.startswith("SLURM_")] + [JOB]:
            monkeypatch.delenv(name, raising=False)

    def program(self, name: str, script: str) -> None:
        """Have the command ``name`` do that."""
        file = self.folder / name
        file.write_text(f'#!/bin/sh\ncd "{self.folder}"\n{script}\n')
        file.chmod(0o755)

    def says(
        self,
        id: str,
        state: str,
        restarts: int = 0,
        nodes: str = "node1",
        reason: str = "None",
        status: int = 0,
    ) -> None:
        """Of a job, whose comment it keeps. ``status``: its program's, as wait(2) has it."""
        file = self.folder / "queue" / id
        before = file.read_text() if file.exists() else " " * sum(WIDTHS)
        comment = before[sum(WIDTHS[:4]) : sum(WIDTHS[:5])].strip()
        file.write_text(ROW % (id, state, restarts, nodes, comment, reason, status))

    def forgets(self, id: str) -> None:
        """As squeue does MinJobAge after a job's end."""
        (self.folder / "queue" / id).unlink()

    def accounting(
        self,
        rows: Mapping[str, str],
        code: str = "0:0",
        name: str = "fewstep-mine",
        comment: str = "",
    ) -> None:
        """What sacct says of jobs: state and nodes, as in ``CANCELLED by 0|None assigned``."""
        (self.folder / "accounting").write_text(
            "".join(f"{id}|{told}|{code}|{name}|{comment}\n" for id, told in rows.items())
        )

    def script(self, job: str) -> str:
        """What was submitted."""
        return (self.folder / "scripts" / job).read_text()

    def submitted(self) -> int:
        """How many scripts there were."""
        return len(os.listdir(self.folder / "scripts"))

    def metric_requests(self) -> int:
        """How often somebody asked squeue."""
        file = self.folder / "asked"
        return len(file.read_text().splitlines()) if file.exists() else 0
