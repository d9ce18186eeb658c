"""The images that a report shows: one seed's, for the cells that its table is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fewstep.analysis.selection import Filters, select
from fewstep.errors import UserError, unknown
from fewstep.experiments.rundir import RunDirectory, SweepDirectory

Samples = dict[tuple[str, int], NDArray[Any]]


def load_samples(
    sweep: SweepDirectory | Path,
    frame: pd.DataFrame,
    seed: int | None = None,
    **filters: Unpack[Filters],
) -> Samples:
    """Samples by (method, steps): uint8 images (n, C, H, W), or vectors as they were saved.

    All are of one ``seed`` (the lowest of the sweep unless given), hence of the same noise. Cells
    without samples are left out. ``filters`` as in ``summarise``.

    Raises:
        UserError: no run has this seed, the cells can not stand in one table, or a file is broken.
    """
    directory = sweep if isinstance(sweep, SweepDirectory) else SweepDirectory(Path(sweep))
    seeds = sorted(int(s) for s in frame["seed"].dropna().unique())
    chosen = seeds[0] if seed is None and seeds else seed
    if chosen not in seeds:
        raise unknown("seed", chosen, map(str, seeds))
    rows = select(frame, filters)
    found: Samples = {}
    for row in rows[rows["seed"] == chosen].to_dict("records"):
        file = RunDirectory(directory.path / row["key"]).samples / f"{row['cell']}.npz"
        if file.is_file():
            found[row["method"], int(row["steps"])] = _images(file)
    return found


def _images(file: Path) -> NDArray[Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["images"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file} holds no samples: {error}") from None
