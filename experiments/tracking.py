"""``sync``: run directories -> MLflow, by one writer, as often as one likes.

MLflow is made to mirror the files. One experiment per sweep (``fewstep/<sweep>``), in it a parent
run for the sweep with its report as artifacts, and one nested run per key, with its diagnostics as
artifacts. Trials never call this.

Why it neither loses nor doubles a point, whichever is killed at any moment, it or the server:

- a run carries the tag ``fewstep.synced``, the fingerprint of the files it was made from, written
  last: equal fingerprint, nothing to do;
- otherwise what MLflow already holds is read back, and only what is missing is logged. A batch of
  metrics is one transaction of the store, so what is read back is what was written;
- params are logged once and never changed; runs are found by ``fewstep.key``, not by name, and of
  two with one key (made by a request whose answer was lost) one goes to the bin.

MLflow cannot forget a point. So where a finished run was trained anew from other sources (its
recorded source hashes differ), a new MLflow run takes its place and the old one goes to the bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.rundir import SweepDirectory
from fewstep.experiments.tracking_store import (
    StoreAway,
    check_store,
    open_store,
    store_lock,
    sweep_lock,
    tracking_uri,
    ui_address,
    ui_command,
)
from fewstep.experiments.tracking_sweep import Look, OnProgress, SweepMirror, SyncReport
from fewstep.experiments.tracking_view import address

__all__ = ["StoreAway", "SyncReport", "Syncer", "charts", "sync", "tracking_uri", "ui_command"]


def sync(
    sweeps: Sequence[SweepDirectory],
    root: Path,
    uri: str | None = None,
    on_progress: OnProgress | None = None,
) -> SyncReport:
    """Bring MLflow up to date with the run directories of ``sweeps``.

    Args:
        root: the run root; by default it holds the database and the artifacts.
        uri: the configured ``tracking.uri``; see ``tracking_uri`` for the default.
        on_progress: called with the sweep's name, the runs dealt with and the sweep's runs.

    Raises:
        StoreAway: the store does not answer, or another sync held the lock for ten minutes.
        UserError: the store cannot be used.
    """
    return Syncer(root, uri)(sweeps, on_progress)


class Syncer:
    """``sync`` for many passes: it remembers what MLflow holds, and asks only about what changed.

    What it remembers are fingerprints that MLflow was seen to have, so forgetting costs time alone.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root, self.uri = root, tracking_uri(root, uri)
        self.mirrors: dict[Path, SweepMirror] = {}
        self.opened = False

    def __call__(
        self, sweeps: Sequence[SweepDirectory], on_progress: OnProgress | None = None
    ) -> SyncReport:
        """One pass; see ``sync``. Where no file has changed, MLflow is not asked at all."""
        report = SyncReport(self.uri)
        looks = [(mirror, mirror.look()) for mirror in map(self._mirror, sweeps)]
        todo = [mirror for mirror, look in looks if not mirror.unchanged(look)]
        if not todo and self.opened:
            for _, look in looks:
                _nothing_to_do(look, report)
            return report
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            check_store(self.uri)
            with store_lock(self.uri, self.root), open_store(self.uri) as client:
                self.opened = True
                for mirror, look in looks:
                    if mirror not in todo or not look.states:
                        _nothing_to_do(look, report)
                        continue
                    with sweep_lock(self.uri, mirror.sweep.path):
                        mirror.bring(client, report, on_progress)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise UserError(f"cannot sync the run root {self.root} ({error})") from error
        except StoreAway:
            # It may come back as another one, or emptied.
            self.mirrors.clear()
            raise
        return report

    def _mirror(self, sweep: SweepDirectory) -> SweepMirror:
        return self.mirrors.setdefault(sweep.path, SweepMirror(sweep, self.root, self.uri))


def charts(report: SyncReport) -> dict[str, str]:
    """The address of each sweep's charts in MLflow's pages, of those that were synced."""
    return {n: ui_address(report.uri, address(e)) for n, e in report.experiments.items()}


def _nothing_to_do(look: Look, report: SyncReport) -> None:
    report.count("waiting", sum(run.key not in look.states for run in look.runs))
    report.count("unchanged", max(len(look.states) - 1, 0))
