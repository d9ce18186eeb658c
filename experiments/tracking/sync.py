"""``sync``: run directories -> MLflow, by one writer, as often as one likes.

One experiment per sweep (``fewstep/<sweep>``), in it a parent run for the sweep with its report as
artifacts, and one nested run per key, with its diagnostics as artifacts. Trials never call this.

Why it neither loses nor doubles a point, whichever is killed at any moment, it or the server:

- a run has the tag ``fewstep.synced``, the fingerprint of the files it was made from, written last:
  equal fingerprint, nothing to do;
- otherwise what MLflow already holds is read back, and only what is missing is logged. A batch of
  metrics is one transaction of the store, so what is read back is what was written;
- params are logged once and never changed; runs are found by ``fewstep.key``, not by name, and of
  two with one key (made by a request whose answer was lost) one is deleted.

MLflow cannot forget a point. So where a finished run was trained again from other sources (its
recorded source hashes differ), a new MLflow run takes its place and the old one is deleted.
"""

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.store.json_files import CorruptFile
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking import store
from fewstep.experiments.tracking.charts import METHODS
from fewstep.experiments.tracking.mlflow_private import view_address
from fewstep.experiments.tracking.store import StoreUnavailable as StoreUnavailable
from fewstep.experiments.tracking.store import check_store, open_store
from fewstep.experiments.tracking.store import tracking_uri as tracking_uri
from fewstep.experiments.tracking.store import ui_command as ui_command
from fewstep.experiments.tracking.sweep_sync import OnProgress, SweepSync
from fewstep.experiments.tracking.sweep_sync import SyncReport as SyncReport


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

    Raises ``StoreUnavailable`` where the store does not answer or another sync held the lock for
    ten minutes, and ``UserError`` where the store cannot be used.
    """
    return Syncer(root, uri)(sweeps, on_progress)


class Syncer:
    """``sync`` for many passes: it remembers what MLflow holds, and asks only about what changed.

    What it remembers are fingerprints that MLflow was seen to have, so forgetting costs time alone.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root, self.uri = root, tracking_uri(root, uri)
        self.mirrors: dict[Path, SweepSync] = {}
        self.opened = False

    def __call__(
        self, sweeps: Sequence[SweepDirectory], on_progress: OnProgress | None = None
    ) -> SyncReport:
        """One pass; see ``sync``. Where no file has changed, MLflow is not asked at all."""
        report = SyncReport(self.uri)
        for sweep in sweeps:
            self.mirrors.setdefault(sweep.path, SweepSync(sweep, self.root, self.uri))
        snapshots = []
        for mirror in [self.mirrors[sweep.path] for sweep in sweeps]:
            try:
                snapshots.append((mirror, mirror.snapshot()))
            except CorruptFile as error:  # of a sweep.json: it hides no other sweep
                if len(sweeps) == 1:
                    raise
                report.problems += (str(error),)
        todo = [mirror for mirror, snapshot in snapshots if mirror.seen != snapshot.states]
        if not self.opened:
            todo = [m for m, snapshot in snapshots if m in todo and not m.is_held(snapshot, report)]
        for mirror, snapshot in snapshots:
            if mirror not in todo or not snapshot.states:
                report.count("waiting", snapshot.waiting())
                report.count("unchanged", max(len(snapshot.states) - 1, 0))
        if not todo and (self.opened or report.experiments):
            self.opened = True  # or read
            return report
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            check_store(self.uri)
            with store.store_lock(self.uri, self.root), open_store(self.uri) as client:
                self.opened = True
                for mirror, snapshot in snapshots:
                    if mirror in todo and snapshot.states:
                        with store.sweep_lock(self.uri, mirror.sweep.path):
                            mirror.push(client, report, on_progress)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise UserError(f"cannot sync the run root {self.root} ({error})") from error
        except StoreUnavailable:
            # It may come back as another one, or emptied.
            self.mirrors.clear()
            raise
        return report


def charts(report: SyncReport) -> dict[str, str]:
    """The address of each sweep's charts in MLflow's pages, of those that were synced."""
    return {
        name: store.ui_address(report.uri, view_address(experiment, METHODS))
        for name, experiment in report.experiments.items()
    }
