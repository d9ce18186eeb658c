"""``fewstep sweep`` and ``fewstep retry``: start runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import options as opt
from fewstep.cli.views.console import err, out
from fewstep.errors import UserError, check_choice, check_range, counted

if TYPE_CHECKING:
    from fewstep.sweeps.definition.sweep import Sweep
    from fewstep.sweeps.launcher import Launcher, LaunchRequest
    from fewstep.sweeps.plan import Planned


def sweep(
    name: Annotated[str, typer.Argument(help="A sweep's name, or the path of its YAML file.")],
    overrides: opt.Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would run; start nothing.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Train two steps of each member on made-up data; keep nothing."
        ),
    ] = False,
    launcher: Annotated[
        str, typer.Option(help="local, ray, slurm, or another: fewstep list launchers.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time; default: as many as fit.")
    ] = None,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="Resume runs that a search ended early, too.")
    ] = False,
    runs: opt.Runs = None,
) -> int:
    """Run a sweep here, on Ray or on SLURM; record it in MLflow, write its report.

    Finished runs are not repeated. Interrupted runs resume, whichever launcher started them. Failed
    runs are retried, except after running out of memory or disk, or after a NaN (fewstep retry).

    Example: [bold]fewstep sweep digits training.steps=500 seeds=5 --plan[/]
    """
    from fewstep.cli.commands.status import orphans_line, queued_runs
    from fewstep.cli.views.plan_table import headline, show
    from fewstep.experiments.early_stopping import continue_stopped
    from fewstep.sweeps.definition import parse as definition
    from fewstep.sweeps.launch_record import recorded
    from fewstep.sweeps.launcher import LAUNCHERS
    from fewstep.sweeps.launcher import launcher as configured
    from fewstep.sweeps.plan import plan as make_plan

    if launcher not in LAUNCHERS:
        raise LAUNCHERS.lookup_error(launcher, "--launcher", LAUNCHERS.names())
    if smoke and (plan or stopped or workers is not None):
        raise UserError("--smoke trains on made-up data: without --plan, --stopped and --workers")
    chosen_sweep = definition.load(name).with_overrides(opt.with_root(overrides, runs))
    if smoke:
        return _smoke(chosen_sweep)
    planned = make_plan(chosen_sweep, view=plan)
    for section, values in planned.sweep.launchers.items():  # also of launchers that are not used
        configured(section, values)
    settings = dict(planned.sweep.launchers.get(launcher, {}))
    if workers is not None:
        check_range("--workers", workers, 1)
        if "workers" not in (f.name for f in fields(configured(launcher))):  # type: ignore[arg-type]
            raise UserError(f"--workers: the launcher {launcher} has no setting 'workers'")
        settings["workers"] = workers
    used = configured(launcher, settings)
    for damaged in (run for run in planned.runs if run.note):
        err.print(f"not run: {damaged.note}")
    if plan:
        request = planned.request(planned.to_do, planned.full_estimate.seconds)
        lines = used.preview(request)
        summary = getattr(used, "summary", None)  # third parties' launchers may have none
        out.print(headline(planned))
        show(planned, lines, summary(request) if summary else ())
        try:
            used.check(request)
        except UserError as error:
            out.print(f"a launch here would be refused: {error}")
        if planned.missing:
            out.print("a launch here would be refused: its data cannot be loaded")
        for reason in planned.unmeasured:
            out.print(f"a launch here would be refused: {reason}")
        return 0
    out.print(headline(planned))
    if stopped and continue_stopped(planned.directory.runs()):
        planned = make_plan(planned.sweep)
    chosen, skipped = _without_final_failures(planned.to_do)
    request = planned.request(chosen)
    used.check(request)
    _print_skipped(skipped, planned.sweep.name)
    planned.write()
    if line := orphans_line(planned.directory, queued_runs(planned.directory)):
        out.print(line)
    labels = {run.directory.key: run.member.label for run in planned.runs}
    tracking = planned.runs[0].member.config.values["tracking"]
    with recorded(planned.directory, launcher, settings, request.resources):
        code = launch(used, request, labels, tracking)
    return code or (opt.BAD_INPUT if planned.counts()["unreadable"] else 0)


def _smoke(chosen: Sweep) -> int:
    from fewstep.sweeps.smoke import smokes

    failed = False
    for member, result in smokes(chosen):
        verdict = "OK" if result.error is None else f"failed: {result.error}"
        if result.error is None and not result.real:
            verdict += f" (shapes alone; it takes {result.bytes / 1e9:.1f} GB beside activations)"
        failed |= result.error is not None
        label = " ".join(f"{k}={v}" for k, v in member.choices.items()) or chosen.name
        size = f"{result.parameters:,} parameters"
        out.print(f"{label}: {size}, {result.seconds:.1f} s, {verdict}")
    return 1 if failed else 0


def retry(
    sweep: opt.SweepName,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Only failures of this class, as oom.")
    ] = None,
    run: opt.OnlyRuns = None,
    overrides: opt.Overrides = None,
    runs: opt.Runs = None,
) -> int:
    """Run failed runs again, with the launcher and settings of the last launch.

    Cancelled runs only with --class cancelled or --run.

    Example: [bold]fewstep retry digits --class oom[/]
    """
    from dataclasses import replace

    from fewstep.experiments.run import relocate
    from fewstep.experiments.store.failures import CLASSES
    from fewstep.sweeps.definition.member import label_of
    from fewstep.sweeps.launch_record import failed, load_launch_record
    from fewstep.sweeps.launcher import LaunchRequest
    from fewstep.sweeps.launcher import launcher as configured

    for kind in classes or []:
        check_choice("--class", kind, tuple(CLASSES))
    directory = opt.find_sweep(sweep, opt.only_root(overrides, runs))
    chosen, errors = failed(directory, classes or [], run or [])
    for error in errors:
        err.print(f"not retried: {error}")
    code = opt.BAD_INPUT if errors else 0
    if not chosen:
        which = f" of class {', '.join(classes)}" if classes else ""
        cancelled = [] if classes else failed(directory, ["cancelled"], run or [])[0]
        hint = (
            f"; {counted(len(cancelled), 'cancelled run')}: --class cancelled" if cancelled else ""
        )
        out.print(f"no failed runs{which} in sweep {sweep}{hint}")
        return code
    name, settings, resources = load_launch_record(directory)
    for failed_run in chosen:
        relocate(failed_run)  # its data may be elsewhere by now
    used = configured(name, settings)
    request = replace(LaunchRequest.of(chosen, resources), directory=directory)
    used.check(request)
    members = (directory.plan() or {"runs": []})["runs"]
    labels = {m["key"]: label_of(m["choices"], m["seed"]) for m in members}
    out.print(f"sweep {sweep}: retrying {counted(len(chosen), 'failed run')} ({name})")
    tracking = (chosen[0].spec() or {})["config"]["tracking"]
    return launch(used, request, labels, tracking) or code


def launch(
    used: Launcher, request: LaunchRequest, labels: Mapping[str, str], tracking: Mapping[str, Any]
) -> int:
    """Launch the runs; record and report them, unless the launcher has left that to others."""
    from fewstep.cli.commands.report import report_each
    from fewstep.cli.commands.sync import sync_sweeps
    from fewstep.cli.views.live_progress import sweep_view

    runs = request.runs
    for run in runs:
        run.cancel.unlink(missing_ok=True)  # it is requested again
    with sweep_view(runs, labels) as view:
        outcome = used.launch(request, view)
    for note in outcome.notes:
        out.print(note)
    if outcome.detached:
        return 1 if outcome.interrupted else 0
    if outcome.interrupted:
        unfinished = counted(len(outcome.interrupted), "run")
        err.print(f"interrupted: {unfinished}; the same command resumes the sweep")
        return opt.INTERRUPTED
    directory = request.directory
    try:
        report_each([directory])
    finally:  # the runs are recorded all the same
        if tracking["enabled"]:
            sync_sweeps([directory], directory.path.parent, tracking["uri"])
    if left := {r.key for r in runs} - {*outcome.done, *outcome.failed, *outcome.stopped}:
        err.print(f"the launcher did not run {', '.join(sorted(left))}")
    failed = any(run.status() == "failed" for run in directory.runs())
    return 1 if left or failed or outcome.failed else 0


def _without_final_failures(runs: Sequence[Planned]) -> tuple[list[Planned], list[Planned]]:
    """The runs to launch, and those that are skipped: final failures, and their students."""
    from fewstep.experiments.store.failures import retried_on_launch

    chosen = [run for run in runs if retried_on_launch(run.directory)]
    skipped = [run for run in runs if run not in chosen]
    while students := [r for r in chosen if r.member.teacher in {s.directory.key for s in skipped}]:
        chosen = [run for run in chosen if run not in students]
        skipped += students
    return chosen, skipped


def _print_skipped(runs: Sequence[Planned], name: str) -> None:
    if not runs:
        return
    failures = [run.directory.failure() or {"class": "without a teacher"} for run in runs]
    kinds = Counter(failure["class"] for failure in failures)
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    failed = f"{counted(len(runs), 'failed run')} ({counts})"
    out.print(f"not retried: {failed}; fewstep retry {name} runs them again")
