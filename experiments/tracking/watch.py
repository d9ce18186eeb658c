"""``fewstep sync --watch``: pass after pass while a sweep runs, whatever the store does."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking.sweep_sync import SyncReport
from fewstep.experiments.tracking.sync import StoreUnavailable, Syncer


@dataclass(frozen=True)
class SyncPass:
    """One pass: how many runs were in which state, what it did, or why it could do nothing."""

    states: Counter[str]
    report: SyncReport | None
    trouble: str | None = None

    @property
    def ended(self) -> bool:
        """Whether every run is done or failed, and MLflow has it so."""
        return self.trouble is None and not (self.states["running"] or self.states["new"])


def watch(
    find: Callable[[], Sequence[SweepDirectory]],
    root: Path,
    uri: str | None = None,
    every: float = 30.0,
) -> Iterator[SyncPass]:
    """Sync every ``every`` seconds until all runs are done or failed, as their directories say.

    ``find`` gives the sweeps before each pass: new ones may have come. A store that does not answer
    is tried again at the next pass; so is whatever fails once a pass has succeeded. Raises
    ``UserError`` at the first pass, for an error that waiting cannot fix.
    """
    syncer, worked = Syncer(root, uri), False
    while True:
        began = time.monotonic()
        try:
            sweeps = find()
            # Looked at before the pass: what ends during it may not be in MLflow in full.
            states = Counter(str(run.status()) for sweep in sweeps for run in sweep.runs())
            this = SyncPass(states, syncer(sweeps))
            worked = True
        except UserError as error:
            if not worked and not isinstance(error, StoreUnavailable):
                raise
            this = SyncPass(Counter(), None, str(error))
        yield this
        if this.ended:
            return
        time.sleep(max(0.0, began + every - time.monotonic()))
