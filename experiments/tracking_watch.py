"""``fewstep sync --watch``: pass after pass while a sweep runs, whatever the store does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.rundir import SweepDirectory
from fewstep.experiments.tracking import StoreAway, Syncer
from fewstep.experiments.tracking_sweep import SyncReport


@dataclass(frozen=True)
class Pass:
    """One pass: how many runs were in which state, what it did, or why it could do nothing."""

    states: Counter[str]
    report: SyncReport | None
    trouble: str | None = None

    @property
    def ended(self) -> bool:
        """Whether every run is done or failed, and MLflow was told so."""
        return self.trouble is None and not (self.states["running"] or self.states["new"])


def watch(
    find: Callable[[], Sequence[SweepDirectory]],
    root: Path,
    uri: str | None = None,
    every: float = 30.0,
) -> Iterator[Pass]:
    """Sync every ``every`` seconds until all runs are done or failed, as their directories say.

    A store that does not answer is tried again at the next pass. So is, once a pass has succeeded,
    whatever else goes wrong: what ends a long watch is its end.

    Args:
        find: the sweeps to watch, asked before each pass (new ones may have come).

    Raises:
        UserError: at the first pass, what waiting cannot mend.
    """
    syncer, worked = Syncer(root, uri), False
    while True:
        began = time.monotonic()
        try:
            sweeps = find()
            # Looked at before the pass: what ends during it may not have been told in full.
            states = Counter(str(run.status()) for sweep in sweeps for run in sweep.runs())
            this = Pass(states, syncer(sweeps))
            worked = True
        except UserError as error:
            if not worked and not isinstance(error, StoreAway):
                raise
            this = Pass(Counter(), None, str(error))
        yield this
        if this.ended:
            return
        time.sleep(max(0.0, began + every - time.monotonic()))
