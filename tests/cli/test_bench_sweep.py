"""``fewstep bench sweep``: what is measured is what is said."""

from __future__ import annotations

import statistics

from fewstep.cli.benchmarks import launching
from fewstep.experiments.run import run
from fewstep.experiments.store.run_directory import find_sweeps
from fewstep.sweeps.launcher import Event, LaunchRequest, OnEvent, Outcome


class Here:
    """Runs one after the other in this process."""

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        for directory in request.runs:
            run(directory)
            on_event(Event("done", directory), [])
        self.runs = request.runs
        return Outcome(done=[directory.key for directory in request.runs])


def test_a_run_and_what_it_says_of_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "RUNS", 3)
    here = Here()
    whole, own = launching.launched(tmp_path, here)
    assert own == statistics.median(r.result()["seconds_total"] for r in here.runs[1:])
    assert whole > own > 0


def test_planning_makes_the_runs(tmp_path):
    assert launching.planned(tmp_path / "new", 3) > 0
    (sweep,) = find_sweeps(tmp_path / "new/runs")
    assert len(sweep.runs()) == 3
    assert all(directory.spec() for directory in sweep.runs())
