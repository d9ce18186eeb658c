"""Lines of setup run in the job's shell, and end the job where one fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys

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
        (["set -eu", "A=3", "# a comment \\"], "program 3 /\n"),
        (["export \\\n  A=4"], "program 4 /\n"),
        (["export \\", "  A=5 \\", "  B=6"], "program 5 /\n"),
        (["A=7\\\\", "cd /tmp"], "program 7\\ /tmp\n"),
        (["trap 'echo \"it ends $A\"' EXIT", "A=8"], "program 8 /\nit ends 8\n"),
        (["trap 'echo not this' EXIT", "trap - EXIT", "A=9"], "program 9 /\n"),
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
        ("exit 3", 3),
        ("exit 0", 0),  # else the job would be complete, and no run would have begun
        ("exec /nonexistent/x", None),  # by bash's version
        ("set -u; echo $NOBODY_SET_THIS", None),
    ],
)
def test_what_fails_ends_the_job_and_is_named(line: str, code: int | None) -> None:
    done = shell("echo before", line, "echo after")
    given = r"\d+" if code is None else str(code)
    expected = rf"before\nfewstep: slurm.setup failed \(exit code {given}\): {re.escape(line)}\n"
    assert done.returncode == FAILED
    assert re.fullmatch(expected, done.stdout)


@pytest.mark.parametrize("line", ["false", "exit 1"])
def test_a_trap_of_the_users_hides_no_failure_and_runs(line: str) -> None:
    done = shell("trap 'echo \"it ends\"' EXIT", "echo before", line)
    told = f"fewstep: slurm.setup failed (exit code 1): {line}\n"
    assert (done.returncode, done.stdout) == (FAILED, f"before\n{told}it ends\n")
    done = shell("trap 'echo ends' EXIT; false")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (FAILED, ["ends"])


def test_an_entry_may_have_several_lines() -> None:
    done = shell("module load nothing\necho fine")
    assert done.stdout == "fewstep: slurm.setup failed (exit code 127): module load nothing\n"
    assert shell("export A=1\ncd /tmp\n").stdout == "program 1 /tmp\n"


def test_letters_that_the_locale_lacks_are_kept() -> None:
    given = ascii(["A='σ →'", 'echo "$A"'])
    code = (
        f"from fewstep.sweeps.slurm import setup_lines as s; print(*s.guarded({given}), sep='\\n')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert made.returncode == 0, made.stderr
    told = subprocess.run(["bash", "-c", made.stdout], capture_output=True, check=True)
    assert told.stdout.decode() == "σ →\n"


def test_what_bash_cannot_read_is_refused_before_anything_is_submitted() -> None:
    with pytest.raises(UserError, match=r"slurm.setup: bash cannot read 'if true'"):
        guarded(["echo fine", "if true"])
