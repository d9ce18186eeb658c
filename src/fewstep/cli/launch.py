"""Commands that start runs: sweep and retry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from fewstep.cli.console import duration, err, out
from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.rundir import RunDirectory, SweepDirectory
from fewstep.sweeps.launching import failed, ready, recall, remember
from fewstep.sweeps.settings import LocalSettings

if TYPE_CHECKING:
    from fewstep.sweeps.plan import Plan
    from fewstep.sweeps.resources import Resources
    from fewstep.sweeps.sweep import Sweep

BAD_INPUT = 2
INTERRUPTED = 130


def sweep(
    name: str,
    overrides: Sequence[Any],
    plan_only: bool,
    launcher: str,
    workers: int | None,
    stopped: bool,
) -> int:
    """``fewstep sweep``; returns the exit code. ``stopped``: go on with what was ended early."""
    from fewstep.cli import status
    from fewstep.cli.plan import headline, show
    from fewstep.experiments.failures import resumed
    from fewstep.experiments.network import choose_device
    from fewstep.experiments.rungs import continue_stopped
    from fewstep.sweeps import definition
    from fewstep.sweeps.plan import plan
    from fewstep.sweeps.sweep import LAUNCHERS

    check_choice("--launcher", launcher, LAUNCHERS)
    made = plan(definition.load(name).with_overrides(overrides))
    for section, given in made.sweep.launchers.items():  # also those that are not used this time
        check_settings(section, given)
    settings = dict(made.sweep.launchers.get(launcher, {}))
    if workers is not None:
        check_range("--workers", workers, 1)
        if launcher != "local":
            raise UserError(f"--workers is the local launcher's, not {launcher}'s")
        settings["workers"] = workers
    check_settings(launcher, settings, [run.resources for run in made.runs if run.to_do])
    out.print(headline(made))
    if plan_only:
        told = {"slurm": scripts, "ray": proposals}.get(launcher)
        show(made, told(made, settings) if told else ())
        return 0
    if stopped and continue_stopped(made.directory.runs()):
        made = plan(made.sweep)
    waiting = made.to_do
    begun = [run for run in waiting if resumed(run.directory)]
    left = {run.directory.key for run in waiting if run not in begun}
    for _ in begun:  # students of a teacher that is left as it is, and theirs
        orphans = [r for r in begun if Path(r.member.config.values["teacher"] or "-").name in left]
        left |= {run.directory.key for run in orphans}
        begun = [run for run in begun if run not in orphans]
    resources = {run.directory.key: run.resources for run in begun}
    if launcher == "local":
        for run in begun:
            choose_device(run.member.config.training.device)
    elif launcher == "ray":
        wanted = launcher_of(launcher, settings, resources, made.directory, made.sweep)
        wanted.check([run.directory for run in begun])
    else:
        from fewstep.sweeps.slurm import queue

        queue.array_limit()  # is there SLURM at all?
    tell_left([run.directory for run in waiting if run.directory.key in left], made.sweep.name)
    made.write()
    if left_over := status.tell_left_over(made.directory, status.waiting(made.directory)):
        out.print(left_over, markup=False)
    accepted = partial(remember, made.directory, launcher, settings, resources)
    if launcher != "slurm":
        accepted()
    labels = {run.directory.key: run.member.label for run in made.runs}
    code = launch(
        made.directory,
        [run.directory for run in begun],
        labels,
        launcher,
        settings,
        resources,
        made.runs[0].member.config.values["tracking"],
        made.sweep,
    )
    if launcher == "slurm":  # it may have refused, and only it can know
        accepted()
    return code


def retry(name: str, root: Path, classes: Sequence[str], keys: Sequence[str]) -> int:
    """``fewstep retry``; returns the exit code."""
    from fewstep.cli.report import find_sweep
    from fewstep.experiments.failures import CLASSES

    for kind in classes:
        check_choice("--class", kind, tuple(CLASSES))
    directory = find_sweep(name, root)
    runs, unreadable = failed(directory, classes, keys)
    for error in unreadable:
        err.print(f"not tried again: {error}", markup=False)
    left = BAD_INPUT if unreadable else 0
    if not runs:
        asked = f" of class {', '.join(classes)}" if classes else ""
        cancelled = [] if classes else failed(directory, ["cancelled"], keys)[0]
        hint = f"; {len(cancelled)} cancelled ones go on with --class cancelled"
        out.print(f"no failed runs{asked} in sweep {name}{hint if cancelled else ''}", markup=False)
        return left
    launcher, settings, resources = recall(directory)
    settings.pop("search", None)  # only what failed
    plan = directory.plan() or {"runs": []}
    labels = {
        m["key"]: " ".join(f"{k}={v}" for k, v in {**m["choices"], "seed": m["seed"]}.items())
        for m in plan["runs"]
    }
    tracking = ((runs[0].spec() or {})["config"])["tracking"]
    out.print(f"sweep {name}: {len(runs)} failed runs are tried again ({launcher})")
    return launch(directory, runs, labels, launcher, settings, resources, tracking) or left


def launch(
    directory: SweepDirectory,
    runs: Sequence[RunDirectory],
    labels: Mapping[str, str],
    launcher: str,
    settings: Mapping[str, Any],
    resources: Mapping[str, Any],
    tracking: Mapping[str, Any],
    searched: Sweep | None = None,
) -> int:
    """Start ``runs``; wait for them, record and report, unless a scheduler does that.

    ``searched``: the sweep whose axes a search may propose from.
    """
    from fewstep.cli.live import sweep_view

    ready(runs)
    if launcher == "slurm":
        return submit(directory, runs, settings, resources)
    outcome = None
    if runs or settings.get("search", "none") != "none":
        with sweep_view(runs, labels) as view:
            made = launcher_of(launcher, settings, resources, directory, searched)
            outcome = made.launch(runs, view)
    if outcome is not None and outcome.interrupted:
        n = len(outcome.interrupted)
        err.print(f"{n} runs are not finished; the same command continues them")
        return INTERRUPTED
    from fewstep.cli.report import report_each
    from fewstep.cli.sync import sync_sweeps

    unreported = None
    try:
        report_each([directory])
    except UserError as error:  # what there is is recorded all the same
        unreported = error
    if tracking["enabled"]:
        sync_sweeps([directory], directory.path.parent, tracking["uri"])
    failed = bool(outcome and outcome.failed) or any(
        r.status() == "failed" for r in directory.runs()
    )
    if unreported is not None:
        raise unreported
    return 1 if failed else 0


def check_settings(
    launcher: str, settings: Mapping[str, Any], asked: Sequence[Resources] = ()
) -> None:
    """Refuse settings that the launcher does not have, or that do not fit what runs ask for."""
    if launcher == "slurm":
        from fewstep.sweeps.slurm.script import check_hours
        from fewstep.sweeps.slurm.settings import SlurmSettings

        check_hours(SlurmSettings.parse(settings), asked)
    elif launcher == "ray":
        from fewstep.sweeps.ray.settings import RaySettings

        RaySettings.parse(settings)
    else:
        LocalSettings.parse(settings)


def launcher_of(
    launcher: str,
    settings: Mapping[str, Any],
    resources: Mapping[str, Any],
    directory: SweepDirectory | None = None,
    searched: Sweep | None = None,
) -> Any:
    """A launcher that waits for its runs."""
    if launcher == "ray":
        from fewstep.sweeps.ray import RayLauncher, RaySettings

        return RayLauncher(RaySettings.parse(settings), resources, directory, searched)
    from fewstep.sweeps.local import LocalLauncher

    return LocalLauncher(LocalSettings.parse(settings).workers)


def submit(
    directory: SweepDirectory,
    runs: Sequence[RunDirectory],
    settings: Mapping[str, Any],
    resources: Mapping[str, Any],
) -> int:
    """Submit to SLURM, and return: nobody needs to stay logged in."""
    from fewstep.sweeps.resources import Resources
    from fewstep.sweeps.slurm.settings import SlurmSettings
    from fewstep.sweeps.slurm.submission import Slurm

    wanted = {run.key: resources.get(run.key, Resources()) for run in runs}
    made = Slurm(directory, SlurmSettings.parse(settings)).submit(runs, wanted)
    sent = {key for s in made for keys in s.tasks for key in keys}
    for s in made:
        n = sum(len(keys) for keys in s.tasks)
        out.print(f"submitted job {s.job}: {len(s.tasks)} tasks, {n} runs", markup=False)
    if len(sent) < len(runs):
        out.print(f"{len(runs) - len(sent)} runs are in the queue already, or at work")
    told = f"to follow it: fewstep status {directory.name} --watch"
    out.print(told if runs else "nothing is left to submit", markup=False)
    return 0


def tell_left(runs: Sequence[RunDirectory], name: str) -> None:
    """Which failures are not tried again."""
    if not runs:
        return
    kinds = Counter((run.failure() or {"class": "without a teacher"})["class"] for run in runs)
    told = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    out.print(
        f"{len(runs)} failed runs are left as they are ({told}): "
        f"fewstep retry {name} tries them again",
        markup=False,
    )


def proposals(made: Plan, settings: Mapping[str, Any]) -> Iterator[str]:
    """What a search would add to the plan."""
    from fewstep.sweeps.ray.settings import RaySettings

    parsed, seeds, known = RaySettings.parse(settings), len(made.sweep.seeds), made.estimate.seconds
    if parsed.search == "none":
        return
    more = parsed.trials * seeds
    told = (
        f"search {parsed.search}: up to {more} runs more ({parsed.trials} trials x {seeds} seeds)"
    )
    if known:
        told += (
            f", about {duration(more * mean(known.values()))} if they take as long as the others"
        )
    yield told


def scripts(made: Plan, settings: Mapping[str, Any]) -> Iterator[str]:
    """The arrays that SLURM would get, and the script of each kind."""
    from fewstep.sweeps.slurm.chunks import Wanted, chunks
    from fewstep.sweeps.slurm.queue import array_limit
    from fewstep.sweeps.slurm.settings import SlurmSettings
    from fewstep.sweeps.slurm.submission import last_script
    from fewstep.sweeps.slurm.submission import scripts as rendered

    parsed = SlurmSettings.parse(settings)
    keys = {run.directory.key for run in made.to_do}
    wanted = []
    for run in made.to_do:
        teacher = Path(run.member.config.values["teacher"] or "-").name
        taught_by = teacher if teacher in keys else None
        wanted.append(Wanted(run.directory.key, taught_by, run.resources))
    arrays = chunks(wanted, parsed, array_limit())
    shown = set()
    for chunk, text in rendered(made.directory, arrays, parsed):
        runs = sum(len(keys) for keys in chunk.tasks)
        yield f"an array of {len(chunk.tasks)} tasks, {runs} runs"
        gpus = chunk.resources.gpus
        if gpus != int(gpus) and parsed.gres is None:
            whole = math.ceil(chunk.at_once(parsed) * gpus)
            yield f"{gpus:g} GPUs a run: SLURM has whole ones, a job asks for {whole}"
        kind = (chunk.resources, chunk.teacher is None)
        if kind not in shown:
            shown.add(kind)
            yield text
    if arrays and parsed.collect:
        yield "a collector, when all others have ended"
        yield last_script(made.directory, parsed)
