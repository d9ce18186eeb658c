"""Commands on recorded sweeps: sync, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.cli.console import err, out
from fewstep.errors import UserError, unknown
from fewstep.experiments.rundir import SweepDirectory, find_sweeps


def sync(name: str | None, root: Path, overrides: Sequence[str]) -> None:
    """``fewstep sync``: one sweep, or all under ``root``."""
    from fewstep.experiments.config import parse

    uri = None
    for override in overrides:
        key, value = parse(override)
        if key != "tracking.uri":
            raise unknown("override of sync", key, ("runs", "tracking.uri"))
        uri = None if value is None else str(value)
    sweeps = find_sweeps(root) if name is None else [find_sweep(name, root)]
    if not sweeps:
        raise UserError(f"no runs under {root}/")
    sync_sweeps(sweeps, root, uri)


def sync_sweeps(sweeps: Sequence[SweepDirectory], root: Path, uri: str | None) -> None:
    """Bring MLflow up to date, and say how to look at it."""
    from fewstep.experiments.tracking import sync, ui_command

    done = sync(sweeps, root, uri)
    counts = f"{done.created} created, {done.updated} updated, {done.unchanged} unchanged"
    out.print(f"MLflow at {done.uri}: {counts}", markup=False)
    for problem in done.problems:
        err.print(f"not synced: {problem}", markup=False)
    out.print("to look at it:", style="bold")
    out.print(f"  {ui_command(done.uri)}", markup=False)


def report(
    directory: SweepDirectory,
    output: Path | None,
    filters: dict[str, Any] | None = None,
    stopped: bool = False,
) -> None:
    """``fewstep report``: print the table, write the files, name them.

    ``filters`` choose among cells, as in ``analysis.summarise``; None is no choice. ``stopped``:
    count runs that a search ended early.
    """
    from fewstep.analysis import load, load_samples, summarise
    from fewstep.reports import terminal
    from fewstep.reports.report import write_report

    chosen: Any = {name: value for name, value in (filters or {}).items() if value is not None}
    frame = load(directory, stopped)
    out.print(terminal.table(summarise(frame, **chosen)))
    samples = load_samples(directory, frame, **chosen)
    target = output or directory.report
    try:
        files = write_report(frame, samples, target, **chosen)
    except OSError as error:
        raise UserError(f"cannot write the report to {target} ({error.strerror})") from None
    out.print("report:", style="bold")
    for path in files.values():
        out.print(f"  {path}", markup=False)


def find_sweep(name: str, root: Path) -> SweepDirectory:
    """The directory of a sweep under ``root``.

    Raises:
        UserError: there is none of this name.
    """
    known = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name not in known:
        raise unknown(f"sweep under {root}/", name, known)
    return known[name]
