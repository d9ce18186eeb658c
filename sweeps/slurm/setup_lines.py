"""``slurm.setup``: lines of shell that must succeed, or the job ends and says which did not."""

import locale
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.store.failures import log_tail

MARK = "fewstep: slurm.setup failed"
FAILED = 79  # the job's exit code


# a line may exit, or set a trap of its own, which is kept for the end of the job
FUNCTIONS = f"""\
fewstep_report() {{
  printf "%s (exit code %s): %s\\n" "{MARK}" "$1" "$fewstep_line"
  fewstep_line=
}}
fewstep_exit() {{
  fewstep_code=$?
  [ -z "$fewstep_line" ] || fewstep_report "$fewstep_code"
  eval "fewstep_words=(${{fewstep_trap#trap }})"
  eval "${{fewstep_words[1]:-}}"
  exit {FAILED}
}}
fewstep_guard() {{
  case $(trap -p EXIT) in
    *fewstep_exit*) ;;
    *) fewstep_trap=$(trap -p EXIT); trap fewstep_exit EXIT ;;
  esac
}}"""


def guarded(lines: Iterable[str]) -> list[str]:
    """Commands of bash that end the job where one of ``lines`` fails.

    They run in the job's own shell, so that modules and environments stay. Lines that bash reads as
    one command (a loop, a here document) succeed or fail as one. A line that exits fails.
    ``UserError`` for lines that bash cannot read.
    """
    commands = _commands([line for entry in lines for line in entry.splitlines()])
    if not commands:
        return []
    failed = f"{{ fewstep_report $?; exit {FAILED}; }}"
    return [
        f"{FUNCTIONS}\nshopt -s execfail",
        *(
            f'fewstep_line={_quoted(c)}; fewstep_guard; eval "$fewstep_line" || {failed}'
            for c in commands
        ),
        'fewstep_guard; trap - EXIT; eval "$fewstep_trap"; shopt -u execfail',
        "unset -f fewstep_report fewstep_exit fewstep_guard; unset fewstep_line fewstep_trap",
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
        if not _is_continued(line) and _is_whole(text := "\n".join(begun)):
            commands.append(text)
            begun = []
    if begun:
        if not _is_whole(text := "\n".join(begun)):
            raise UserError(f"slurm.setup: bash cannot read {begun[0]!r}")
        commands.append(text)
    return commands


def _is_continued(line: str) -> bool:
    """Whether the next line belongs to it; at the end of a comment it does no harm."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _quoted(text: str) -> str:
    """One word of bash, in UTF-8: submitit writes the script in the encoding of the locale."""
    if text.isascii() or locale.getpreferredencoding(False).lower() in ("utf-8", "utf8"):
        return shlex.quote(text)
    plain = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in text.encode())
    return f"$'{''.join(plain)}'"


def _is_whole(text: str) -> bool:
    if (bash := shutil.which("bash")) is None:
        return True
    done = subprocess.run([bash, "-n", "-c", text.encode()], capture_output=True)
    return done.returncode == 0 and b"warning" not in done.stderr  # of an unfinished here document
