"""``python -m helpers.sync_once ROOT SWEEP [URI]``: syncs, and prints its counts."""

from __future__ import annotations

import sys
from pathlib import Path

from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking.sync import sync

if __name__ == "__main__":
    root, sweep, *uri = sys.argv[1:]
    report = sync([SweepDirectory(Path(sweep))], Path(root), uri[0] if uri else None)
    print(report.created, report.updated, report.unchanged)
