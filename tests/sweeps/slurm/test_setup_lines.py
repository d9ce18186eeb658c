"""Lines of setup run in the job's shell, and end the job where one fails."""

from __future__ import annotations

import subprocess

import pytest

from fewstep.errors import UserError
from fewstep.sweeps.slurm.setup_lines import FAILED, guarded


def shell(*lines: str) -> subprocess.CompletedProcess[str]:
    script = "\n".join([*guarded(lines), 'echo "program $A $PWD"'])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "program  /\n"),
        (["export A=1", "cd /tmp"], "program 1 /tmp\n"),
        (["for i in 1 2; do", "  A=$A$i", "done"], "program 12 /\n"),
        (["read -r A <<X", "it's", "X"], "program it's /\n"),
        (["if [ -d /nonexistent ]; then", "  false", "fi"], "program  /\n"),
        (["false || A=2"], "program 2 /\n"),
        (["# false"], "program  /\n"),
        (["set -e", "A=3"], "program 3 /\n"),
    ],
)
def test_what_succeeds_stays_for_the_program(lines: list[str], expected: str) -> None:
    done = shell(*lines)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("module load nothing", 127),
        ("source /nonexistent/activate", 1),
        ("false", 1),
        ("cd /nonexistent", 1),
        ("(exit 7)", 7),
        ("A='quoted \"text\"' false", 1),
    ],
)
def test_what_fails_ends_the_job_and_is_named(line: str, code: int) -> None:
    done = shell("echo before", line, "echo after")
    expected = f"before\nfewstep: slurm.setup failed (exit code {code}): {line}\n"
    assert (done.returncode, done.stdout) == (FAILED, expected)


def test_what_bash_cannot_read_is_refused_before_anything_is_submitted() -> None:
    with pytest.raises(UserError, match=r"slurm.setup: bash cannot read 'if true'"):
        guarded(["echo fine", "if true"])
