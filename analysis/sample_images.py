"""The images that a report shows: one seed's, for the cells that its table is made of."""

import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from fewstep.analysis.filters import Filters, select
from fewstep.analysis.frame import sweep_directories
from fewstep.analysis.summary_types import Samples
from fewstep.errors import unknown
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory


def load_samples(
    sweeps: SweepDirectory | Path | str | Sequence[SweepDirectory | Path | str],
    frame: pd.DataFrame,
    seed: int | None = None,
    **filters: Unpack[Filters],
) -> Samples:
    """Samples by (method, steps): uint8 images (n, C, H, W), or vectors as they were saved.

    All are of one ``seed`` (the lowest there is unless given) and of the table's first sample set,
    hence of the same noise. Cells without samples are left out, and with a warning those whose file
    is damaged. ``sweeps``: those that ``frame`` was loaded from. ``filters`` as in ``summarise``.

    Raises ``UserError``: no run has this seed, or the cells can not stand in one table.
    """
    named = [sweeps] if isinstance(sweeps, SweepDirectory | Path | str) else sweeps
    paths = {directory.name: directory.path for directory in sweep_directories(named)}
    seeds = sorted(int(s) for s in frame["seed"].dropna().unique())
    chosen = seeds[0] if seed is None and seeds else seed
    if chosen not in seeds:
        raise unknown("seed", chosen, map(str, seeds))
    rows = select(frame, filters)
    samples: Samples = {}
    first = rows["sample_set"] == rows["sample_set"].min()
    for row in rows[first & (rows["seed"] == chosen)].to_dict("records"):
        file = RunDirectory(paths[row["sweep"]] / row["key"]).samples / f"{row['cell']}.npz"
        if not file.is_file():
            continue
        try:
            with np.load(file, allow_pickle=False) as arrays:
                samples[row["method"], int(row["steps"])] = np.asarray(arrays["images"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            reason = str(error) or type(error).__name__
            warnings.warn(f"left out: {file} holds no samples ({reason})", stacklevel=2)
    return samples
