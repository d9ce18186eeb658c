"""Whether a finished run has its training curve. It is only drawn: nothing else would miss a line.

This module imports no torch, and is quick: reports look at thousands of these files.
"""

import contextlib
import json
import math
import re
from typing import Any

from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.files import patiently

LINE = re.compile(
    rb'^\{"step": (\d+)(?:,[\x20-\x7e]*)?\}$', re.MULTILINE
)  # as the trainer writes it


def curve_problem(run: RunDirectory) -> str | None:
    """What is wrong with the metrics.jsonl of a finished run; None: nothing, or it has not ended.

    A kill tears no line of a finished run: the attempt after it writes the file anew.
    """
    if not (end := int((run.result() or {}).get("steps") or 0)):
        return None
    file = run.metrics_file.absolute()
    try:
        content = patiently(file.read_bytes)
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    lines = content.splitlines()
    steps = [int(step) for step in LINE.findall(content)]
    if len(steps) < len(lines):  # of another program, or damaged
        steps = [step for line in lines if (step := _step(line)) is not None]
    if unreadable := len(lines) - len(steps):
        return f"{file} is damaged: {unreadable} of {len(lines)} lines"
    training = (run.spec() or {}).get("config", {}).get("training", {})
    longest, reached = _interval(run, training), 0
    for step in sorted(steps):
        if step - reached > longest:
            return f"{file} has no line between steps {reached} and {step}"
        reached = step
    if end - reached > longest or (end > reached and end == training.get("steps")):
        return f"{file} ends at step {reached} of {end}"
    return None


def _step(line: bytes) -> int | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None


def _interval(run: RunDirectory, first: Json) -> float:
    """How many steps may lie between two lines, with the ``first`` settings or the latest."""
    latest: Json = {}
    with contextlib.suppress(CorruptFile):  # whoever needs it says so
        latest = (run.request() or {}).get("bookkeeping", {})
    return max(map(_shortest, (first, {**first, **latest})))


def _shortest(training: Json) -> float:
    every: list[Any] = [training.get(name) for name in ("log_every", "validate_every")]
    return min((steps for steps in every if steps), default=math.inf)
