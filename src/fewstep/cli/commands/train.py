"""``fewstep train``: one run; also the end of ``fewstep evaluate``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fewstep.cli.options import Overrides, Runs, with_root
from fewstep.cli.views.console import err, meter, out
from fewstep.errors import counted

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import RunDirectory


def train(overrides: Overrides = None, runs: Runs = None) -> int:
    """Train one run and evaluate it. Repeated, the command resumes the run.

    Example: [bold]fewstep train objective=scm data=digits training.steps=200 seed=1[/]
    """
    from fewstep.experiments.config.data_location import located
    from fewstep.experiments.config.run_config import compose
    from fewstep.experiments.data.identity import data_record
    from fewstep.experiments.run import directory_of, prepare
    from fewstep.experiments.store.data_record import check_data, describe
    from fewstep.experiments.training.network import choose_device
    from fewstep.experiments.training.teacher import first_weights_line
    from fewstep.experiments.validation import check
    from fewstep.files import relative_to

    config = compose(with_root(overrides, runs))
    choose_device(config.training.device)
    directory = directory_of(config)
    config_here = located(config, directory)
    with relative_to(directory.made_in()):
        (dataset,) = check([config_here]).values()
    record = data_record(dataset)
    check_data(directory, record, getattr(config_here.data, "root", None))
    directory = prepare(config)
    if directory.result() is not None:
        out.print(f"{directory.path} is trained already; nothing is repeated")
    else:
        weights = first_weights_line(config)
        for line in (f"data {dataset.name}: {describe(record)}", *dataset.notes, weights):
            if line is not None:
                out.print(line)
    return bring_to_end(directory, config.objective.title)


def bring_to_end(directory: RunDirectory, title: str) -> int:
    """Train and evaluate what is missing; print the cells; returns the exit code."""
    from fewstep.cli.views.cells_table import cells_table
    from fewstep.experiments.run import Interrupted, RunFailed, RunLocked, run
    from fewstep.experiments.worker import BUSY, FAILED, INTERRUPTED, ProgressFile, StopFlag

    directory.cancel.unlink(missing_ok=True)  # it is requested again
    try:
        with meter(title) as progress:
            write_progress = ProgressFile(directory)  # for fewstep status

            def on_progress(phase: str, done: int, total: int, rate: float) -> None:
                progress(phase, done, total, rate)
                write_progress(phase, done, total, rate)

            result = run(directory, StopFlag(), on_progress)
    except RunFailed as failure:
        err.print(f"failed: {failure}")
        err.print(f"recorded in {directory.path / 'failure.json'}")
        return FAILED
    except Interrupted as reason:
        err.print(f"interrupted: {reason}; the same command resumes it")
        return INTERRUPTED
    except RunLocked as reason:
        err.print(str(reason))
        return BUSY
    cells = sorted(
        directory.cells().values(),
        key=lambda c: (c["metric"]["label"], c["cell"].get("at_step") or math.inf, c["nfe"]),
    )
    if cells:
        out.print(cells_table(cells))
        if any(record.get("error") is not None for record in cells):
            out.print("±: standard error of the estimate from these samples, not a spread of runs")
    out.print(
        f"{counted(result['steps'], 'step')} in {result['train_seconds']:.0f} s "
        f"({result['steps_per_second']:.1f} steps/s), {result['parameters']:,} parameters, "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    out.print(f"run: {directory.path}")
    return 0
