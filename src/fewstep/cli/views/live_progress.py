"""The live view of a launch: runs done, speed, time left."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich.progress import Progress, TaskID

from fewstep.cli.views.console import duration, out, progress_bar
from fewstep.errors import UserError
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.member import label_of
from fewstep.sweeps.launcher import Event
from fewstep.sweeps.progress import WorkEstimate

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
        self.work: dict[str, WorkEstimate] = {}
        self.before: dict[str, float] = {}  # how much of a run an earlier launch had done
        self.printed = time.monotonic()
        self.begun: tuple[float, float] | None = None  # when progress was first seen, and how much
        self.started = time.time()

    def __call__(self, event: Event, working: Sequence[RunDirectory]) -> None:
        if event.kind != "tick" and event.run is not None:
            self._print(event.kind, event.run, event.reason())
        shares = {run.key: self._share(run) for run in working}
        speed = sum(rate for _, rate, _ in shares.values())
        done = self.finished + sum(share for share, _, _ in shares.values())
        text = f"{speed:.0f} steps/s, " if speed else ""
        text += f"{self._left(done)} left" if working else ""
        if self.bar is not None and self.whole is not None:
            self.bar.update(self.whole, completed=done + self.cached, text=text, runs=self._runs())
            for run in working:
                share, rate, phase = shares[run.key]
                if run.key not in self.tasks:
                    label = f"  {self._label(run)}"
                    self.tasks[run.key] = self.bar.add_task(label, total=1, text="", runs="")
                speed_text = f"{phase}, {rate:.0f} steps/s" if rate else phase
                self.bar.update(self.tasks[run.key], completed=share, text=speed_text)
        elif time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            out.print(f"{self._runs()}, {text}".removesuffix(", "))

    def _print(self, kind: str, run: RunDirectory, failure: Json | None) -> None:
        if kind in ("done", "failed", "stopped"):
            self.finished += 1
            self.failed += kind == "failed"
        if self.bar is not None and kind == "started":
            return
        if self.bar is not None and kind not in ("busy", "again") and run.key in self.tasks:
            self.bar.remove_task(self.tasks.pop(run.key))
        note = ": another process has it" if kind == "busy" else ""
        if failure is not None:
            note = f": {failure['class']}: {failure['message']}"
            note += f" (log: {run.log})" if kind == "failed" else ""
        elif kind == "failed" and not os.path.exists(run.path / "spec.json"):
            note = f": {run.path} was removed; the next launch creates it again"
        word = "waiting for" if kind == "busy" else kind
        out.print(word, style={"done": "green", "failed": "red"}.get(kind), end="")
        out.print(f" {self._label(run)} ({run.key}){note}")

    def _runs(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished + self.cached}/{self.total} runs{failed}"

    @property
    def total(self) -> int:
        """The known runs; a search adds to them."""
        return max(self.planned, self.finished + self.cached)

    def _label(self, run: RunDirectory) -> str:
        if run.key not in self.labels:  # proposed by a search during this launch
            plan = SweepDirectory(run.path.parent).plan() or {"runs": []}
            labels = {m["key"]: label_of(m["choices"], m["seed"]) for m in plan["runs"]}
            self.labels[run.key] = labels.get(run.key, run.key)
        return self.labels[run.key]

    def _share(self, run: RunDirectory) -> tuple[float, float, str]:
        """How much of a run is done, its speed in steps a second, and its phase."""
        progress = run.progress()
        if progress is None or progress["time"] < self.started:
            return 0.0, 0.0, "starting"
        if run.key not in self.work:
            self.work[run.key] = WorkEstimate(1, 0)
            with suppress(OSError, UserError):  # it is for display alone
                self.work[run.key] = WorkEstimate.of(run)
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
    with progress_bar("runs") as bar:
        view.bar = bar
        view.whole = bar.add_task("sweep", total=view.total, text="", runs="")
        yield view
