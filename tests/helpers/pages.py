"""Tutorials as programs: the code blocks of a page, run in order in an empty folder.

- a block with a title is a file, written into the folder;
- ``sh``: commands, one a line (``\\`` continues it); RUN stands for the run that was last trained;
- ``python``: the untitled ones so far are one program, run where another kind of block follows;
- ``text``: lines of the output of the block before, whatever numbers and keys are in it; ``...``
  stands for any lines.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from helpers.commands import DEPRECATED, TIMEOUT_SECONDS, WARNING_ENVIRONMENT, run

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
TRAINED = re.compile(r"runs/train/([0-9a-f]{12})")


class Tutorial:
    """A page, run in ``folder``."""

    def __init__(self, page: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.text = (DOCS / page).read_text(encoding="utf-8")
        self.folder, self.environment = folder, {**environment, **WARNING_ENVIRONMENT}
        self.said = ""  # by the last block
        self.trained = ""  # key of the last run of ``fewstep train``

    def run(self) -> None:
        """Run every block; fails the test at the first that fails or says something else."""
        blocks = list(BLOCK.findall(self.text))
        assert blocks, "a page without code"
        program, new = "", False
        for language, title, text in [*blocks, ("end", "", "")]:
            if language == "python" and not title:
                program, new = program + "\n" + text, True
                continue
            if new:
                (self.folder / "page.py").write_text(program)
                self.said, new = self.command("python page.py"), False
            if title:
                (self.folder / title).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / title).write_text(text)
            elif language == "sh":
                self.said = "".join(self.command(line) for line in lines(text))
            elif language == "text":
                self.compare(text)

    def command(self, line: str) -> str:
        """The output of one line of a shell."""
        words = [
            self.trained if word == "RUN" else word for word in shlex.split(line, comments=True)
        ]
        if words[0] == "fewstep":
            done = run(*words[1:], cwd=self.folder, environment=self.environment)
        else:
            done = subprocess.run(
                self._program(words),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        assert DEPRECATED not in done.stderr, done.stderr
        assert done.returncode == 0, f"{line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        for key in TRAINED.findall(done.stdout):
            self.trained = key
        return str(done.stdout)

    def _program(self, words: list[str]) -> list[str]:
        if words[0] == "python":
            return [sys.executable, *words[1:]]
        if words[:3] == ["pip", "install", "-e"]:  # into the folder, not into our environment
            target = self.folder / "installed"
            self.environment["PYTHONPATH"] = str(target)
            options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet"]
            words = [*options, "--target", str(target), *words[3:]]
            return [sys.executable, "-m", "pip", "install", *words]
        return words

    def compare(self, text: str) -> None:
        """Each line must be among the output's, with any numbers."""
        said = {shape(line) for line in self.said.splitlines()}
        for line in text.splitlines():
            if line.strip() not in ("", "..."):
                assert shape(line) in said, f"not in the output: {line!r}\n{self.said}"


def lines(text: str) -> Iterator[str]:
    """The commands of a block, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def shape(line: str) -> str:
    """A line without what differs from machine to machine: numbers, keys, widths of columns."""
    line = re.sub(r"\b[0-9a-f]{12}\b", "#", line)
    line = re.sub(r"\d[\d.,:]*", "#", line)
    return " ".join(re.sub(r"[-─━]{3,}", "---", line).split())
