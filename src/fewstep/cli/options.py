"""What several commands share: arguments, options, the run root, sweeps by name."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.errors import UserError, unknown
from fewstep.files import broken_link

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory

BAD_INPUT = 2
INTERRUPTED = 130
TYPER: dict[str, Any] = {
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

OVERRIDES = "Settings as key=value, in Hydra's grammar."
Overrides = Annotated[list[str] | None, typer.Argument(help=OVERRIDES, show_default=False)]
Runs = Annotated[
    str | None, typer.Option("--runs", help="Run root (same as runs=DIR; default: runs).")
]
SweepName = Annotated[str, typer.Argument(help="The sweep's name.")]
Others = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SWEEP]...", help="More sweeps, or runs=DIR.", show_default=False),
]
OneSweep = Annotated[str | None, typer.Argument(help="One sweep; default: all.")]
OnlyRuns = Annotated[
    list[str] | None, typer.Option("--run", help="Only this run (beginning of its key).")
]
RunName = Annotated[str, typer.Argument(help="A run's directory, or the beginning of its key.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all numbers to this file.", metavar="FILE")
]

# the cells of a table
Weights = Annotated[str | None, typer.Option(help="ema or raw, if a sweep has both.")]
Guidance = Annotated[
    str | None,
    typer.Option(
        help="Guidance scale, if there are several; best: of each cell, chosen on one sample set "
        "and measured on the others."
    ),
]
SampleSet = Annotated[
    int | None, typer.Option(help="One sample set, if there are several; default: their mean.")
]
MetricName = Annotated[
    str | None, typer.Option(help="Label or id of the metric, if there are several.")
]
Sampler = Annotated[str | None, typer.Option(help="Sampler, if a method has several.")]
Times = Annotated[str | None, typer.Option(help="Times, if a number of steps has several.")]
CountStopped = Annotated[
    bool, typer.Option("--stopped", help="Include runs that a search ended early.")
]


def pairs(command: str, overrides: Sequence[str] | None, names: Collection[str]) -> list[Any]:
    """The overrides as (key, value); a UserError for one that is none of ``names``, nor below."""
    from fewstep.experiments.config.run_config import parse  # imports all registries: slow

    parsed = [parse(override) for override in overrides or []]
    for key, _ in parsed:
        if not {key, key.split(".")[0]} & {*names}:
            raise unknown(f"setting of {command}", key, names)
    return parsed


def check_finished(run: RunDirectory) -> None:
    """Raise a UserError unless the run is trained."""
    if run.result() is None:
        raise UserError(
            f"run {run.key} is not finished ({run.status()}): train it to its end first"
        )


def check_writable(option: str, file: Path | None) -> None:
    """Raise a UserError unless ``file`` can be written, before work is done for it."""
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{option} {str(file)!r}: no folder {folder}")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise UserError(f"{option} {str(file)!r}: cannot be written")


def root_and_rest(overrides: Sequence[str] | None, runs: str | None) -> tuple[Path, list[str]]:
    """The run root from ``--runs`` or a ``runs=DIR`` override, and the other overrides."""
    rest = []
    for override in overrides or []:
        if override.startswith("runs="):
            runs = override.removeprefix("runs=").strip("'\"")
        else:
            rest.append(override)
    root = Path(runs or "runs")
    if broken := broken_link(root):
        raise UserError(f"run root {str(root.absolute())!r}: {broken}")
    return root, rest


def with_root(overrides: Sequence[str] | None, runs: str | None) -> list[Any]:
    """All overrides, the run root as a pair (a path needs no quotes then)."""
    root, rest = root_and_rest(overrides, runs)
    given = runs is not None or len(rest) < len(overrides or [])
    return [*rest, ("runs", str(root))] if given else list(rest)


def only_root(overrides: Sequence[str] | None, runs: str | None) -> Path:
    """The run root, for commands that take no other override."""
    root, rest = root_and_rest(overrides, runs)
    if rest:
        raise UserError(f"this command takes no override but runs=DIR, got {rest[0]!r}")
    return root


def find_sweep(name: str, root: Path) -> SweepDirectory:
    """The directory of a sweep under ``root``; a UserError if there is none of this name."""
    from fewstep.experiments.store.run_directory import find_sweeps

    known = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name not in known:
        raise unknown(f"sweep under {root.absolute()}/", name, known)
    return known[name]
