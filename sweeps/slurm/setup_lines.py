"""``slurm.setup``: lines of shell that must succeed, or the job ends and says which did not."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.store.failures import log_tail

MARK = "fewstep: slurm.setup failed"
FAILED = 79  # the job's exit code


def guarded(lines: Iterable[str]) -> list[str]:
    """Commands of bash that end the job where one of ``lines`` fails.

    They run in the job's own shell, so that modules and environments stay. Lines that bash reads as
    one command (a loop, a here document) succeed or fail as one. A line that exits fails.
    ``UserError`` for lines that bash cannot read.
    """
    commands = _commands([line for entry in lines for line in entry.splitlines()])
    if not commands:
        return []
    told = f'code=$?; printf "%s (exit code %s): %s\\n" "{MARK}" "$code" "$fewstep_line"'
    return [
        f"shopt -s execfail; trap {shlex.quote(f'{told}; exit {FAILED}')} EXIT",
        *(f'fewstep_line={shlex.quote(c)}; eval "$fewstep_line" || exit $?' for c in commands),
        "shopt -u execfail; trap - EXIT; unset fewstep_line",
    ]


def failed_line(log: Path) -> str | None:
    """What the job's log says of the line that failed; None where none did."""
    try:
        told = [line for line in log_tail(log) if line.startswith(MARK)]  # of several, the first
    except OSError:
        return None
    return told[-1].removeprefix("fewstep: ") if told else None


def _commands(lines: list[str]) -> list[str]:
    """``lines``, those together that bash reads as one command."""
    commands, begun = [], list[str]()
    for line in lines:
        begun.append(line)
        if _is_whole(text := "\n".join(begun)):
            commands.append(text)
            begun = []
    if begun:
        raise UserError(f"slurm.setup: bash cannot read {begun[0]!r}")
    return commands


def _is_whole(text: str) -> bool:
    if (bash := shutil.which("bash")) is None:
        return True
    done = subprocess.run([bash, "-n", "-c", text], capture_output=True, text=True)
    return done.returncode == 0 and "warning" not in done.stderr  # of an unfinished here document
