"""The live view of a sweep under the local launcher: runs done, speed, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fewstep.cli.console import duration, out
from fewstep.experiments.rundir import RunDirectory, SweepDirectory
from fewstep.sweeps.done import Work
from fewstep.sweeps.launcher import Event

LINE_SECONDS = 20.0
PHASES = {"pairs": "drawing pairs", "train": "training", "evaluate": "evaluating"}


class SweepView:
    """Called with each event of the launcher."""

    def __init__(self, runs: Sequence[RunDirectory], labels: Mapping[str, str]) -> None:
        self.labels = {**{r.key: r.key for r in runs}, **labels}
        self.cached = max(0, len(labels) - len(runs))
        self.planned = len(runs) + self.cached
        self.finished = self.failed = 0
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.whole: TaskID | None = None
        self.work: dict[str, Work] = {}
        self.before: dict[str, float] = {}  # how much of a run an earlier launch had done
        self.told = time.monotonic()
        self.begun: tuple[float, float] | None = None  # when work was first seen, and how much
        self.started = time.time()

    def __call__(self, event: Event, working: Sequence[RunDirectory]) -> None:
        if event.kind != "tick" and event.run is not None:
            self._told(event.kind, event.run)
        shares = {run.key: self._share(run) for run in working}
        speed = sum(rate for _, rate, _ in shares.values())
        done = self.finished + sum(share for share, _, _ in shares.values())
        text = f"{speed:.0f} steps/s, " if speed else ""
        text += f"{self._left(done)} left" if working else ""
        if self.bar is not None and self.whole is not None:
            self.bar.update(self.whole, completed=done + self.cached, text=text, runs=self._runs())
            named = {run.key: run for run in working}
            for key, (share, rate, phase) in shares.items():
                if key not in self.tasks:
                    label = f"  {self._label(named[key])}"
                    self.tasks[key] = self.bar.add_task(label, total=1, text="", runs="")
                told = f"{phase}, {rate:.0f} steps/s" if rate else phase
                self.bar.update(self.tasks[key], completed=share, text=told)
        elif time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            out.print(f"{self._runs()}, {text}".removesuffix(", "))

    def _told(self, kind: str, run: RunDirectory) -> None:
        if kind in ("done", "failed", "stopped"):
            self.finished += 1
            self.failed += kind == "failed"
        if kind == "started":
            if self.bar is None:
                out.print(f"started {self._label(run)} ({run.key})")
            return
        if kind == "busy":
            out.print(f"waiting for {self._label(run)} ({run.key}): another process has it")
            return
        if kind == "again":
            why = run.failure() or {"class": "?", "message": "?"}
            label = f"{self._label(run)} ({run.key})"
            out.print(f"again {label}: {why['class']}: {why['message']}", markup=False)
            return
        if self.bar is not None and run.key in self.tasks:
            self.bar.remove_task(self.tasks.pop(run.key))
        told = {"done": "[green]done[/]", "failed": "[red]failed[/]"}.get(kind, kind)
        note = ""
        if kind == "failed" and (failure := run.failure()):
            note = f": {failure['class']}: {failure['message']} (log: {run.log})"
        elif kind == "failed" and run.spec() is None:
            note = f": {run.path} was removed; the next launch makes it again"
        out.print(f"{told} {self._label(run)} ({run.key})", end="")
        out.print(note, markup=False)

    def _runs(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished + self.cached}/{self.total} runs{failed}"

    @property
    def total(self) -> int:
        """Runs there are, as far as they are known: a search adds to them."""
        return max(self.planned, self.finished + self.cached)

    def _label(self, run: RunDirectory) -> str:
        if run.key not in self.labels:  # proposed by a search, since we began
            plan = SweepDirectory(run.path.parent).plan() or {"runs": []}
            told = {m["key"]: m["choices"] | {"seed": m["seed"]} for m in plan["runs"]}
            choices = told.get(run.key, {})
            self.labels[run.key] = " ".join(f"{k}={v}" for k, v in choices.items()) or run.key
        return self.labels[run.key]

    def _share(self, run: RunDirectory) -> tuple[float, float, str]:
        """How much of a run is done, its speed in steps a second, and its phase."""
        progress = run.progress()
        if progress is None or progress["time"] < self.started:
            return 0.0, 0.0, "starting"
        if run.key not in self.work:
            self.work[run.key] = Work.of(run)
            if len(run.attempts()) > 1:
                self.before[run.key] = self.work[run.key].share(progress)
        share = self.work[run.key].share(progress)
        training = progress["phase"] == "train"
        return share, progress["rate"] if training else 0.0, PHASES[progress["phase"]]

    def _left(self, done: float) -> str:
        now, here = time.monotonic(), done - sum(self.before.values())
        if self.begun is None and here > 0:  # the first run's process has to start, others have not
            self.begun = now, here
        since, before = self.begun or (now, here)
        if here - before < 0.02:
            return "?"
        return duration((now - since) / (here - before) * (self.total - self.cached - done))


@contextmanager
def sweep_view(runs: Sequence[RunDirectory], labels: Mapping[str, str]) -> Iterator[SweepView]:
    """A view of ``runs`` being launched; ``labels``: of all runs of the sweep, by key."""
    view = SweepView(runs, labels)
    if not out.is_terminal:
        yield view
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[runs]}"),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=out,
    ) as bar:
        view.bar = bar
        view.whole = bar.add_task("sweep", total=view.total, text="", runs="")
        yield view
