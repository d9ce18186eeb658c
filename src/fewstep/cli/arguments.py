"""What several commands take: overrides, the run root, names of runs and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import UserError

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

# which cells make up a table
Weights = Annotated[str | None, typer.Option(help="ema or raw, where both are there.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale, where several are there.")]
SampleSet = Annotated[
    int | None, typer.Option(help="One sample set, where several are there; default: their mean.")
]
MetricName = Annotated[
    str | None, typer.Option(help="Label or id of the metric, where several are there.")
]
Sampler = Annotated[str | None, typer.Option(help="Sampler, where one method has several.")]
Times = Annotated[str | None, typer.Option(help="Times, where one number of steps has several.")]
CountStopped = Annotated[
    bool, typer.Option("--stopped", help="Count runs that were ended early, as they were then.")
]


def names_and_root(
    first: str, others: list[str] | None, runs: str | None
) -> tuple[list[str], Path]:
    """Names of sweeps, and the run root: what has no ``=`` is a name."""
    names = [first, *(word for word in others or [] if "=" not in word)]
    return names, only_root([word for word in others or [] if "=" in word], runs)


def root_and_rest(overrides: list[str] | None, runs: str | None) -> tuple[str | None, list[str]]:
    """The run root from ``--runs`` or a ``runs=DIR`` override, and the other overrides."""
    rest = []
    for override in overrides or []:
        if override.startswith("runs="):
            runs = override.removeprefix("runs=").strip("'\"")
        else:
            rest.append(override)
    return runs, rest


def with_root(overrides: list[str] | None, runs: str | None) -> list[Any]:
    """All overrides, the run root as a pair (a path needs no quoting then)."""
    root, rest = root_and_rest(overrides, runs)
    return [*rest, ("runs", root)] if root else list(rest)


def only_root(overrides: list[str] | None, runs: str | None) -> Path:
    """The run root, for commands that take no other override."""
    root, rest = root_and_rest(overrides, runs)
    if rest:
        raise UserError(f"this command takes no override but runs=DIR, got {rest[0]!r}")
    return Path(root or "runs")
