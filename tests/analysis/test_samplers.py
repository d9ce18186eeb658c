"""Samplers of one method beside each other, at equal NFE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_run, write_sweep

from fewstep.analysis import load, over_nfe
from fewstep.analysis.filters import AmbiguousCells

VALUES = {"euler": {2: 9.0, 4: 5.0}, "heun": {1: 8.0, 2: 7.0}, "amed": {1: 6.0, 2: 4.0}}


def sampled(root: Path, **cell: Any) -> pd.DataFrame:
    """Two seeds, the second 1 above the first, of three samplers."""
    folder = write_sweep(root, [Run("A", s) for s in range(2)])
    for seed in range(2):
        for solver, values in VALUES.items():
            run = Run(
                "A", seed, {steps: value + seed for steps, value in values.items()},
                cell={"sampler": {"solver": solver}, **cell},
            )  # fmt: skip
            write_run(folder / run.key, run)
    frame = load(folder)
    two = ~frame["sampler"].eq("solver=euler")
    return frame.assign(nfe=frame["steps"].where(~two, 2 * frame["steps"]))


def test_a_row_per_sampler_and_nfe(tmp_path: Path) -> None:
    table = over_nfe(sampled(tmp_path))
    rows = list(table[["nfe", "sampler", "steps", "mean"]].itertuples(index=False, name=None))
    assert rows == [
        (2, "solver=amed", 1, 6.5), (2, "solver=heun", 1, 8.5), (2, "solver=euler", 2, 9.5),
        (4, "solver=amed", 2, 4.5), (4, "solver=euler", 4, 5.5), (4, "solver=heun", 2, 7.5),
    ]  # fmt: skip
    assert set(table["n"]) == {2}
    assert table["half_width"].tolist() == pytest.approx([12.706 / 2] * 6, rel=1e-3)
    assert over_nfe(load(write_sweep(tmp_path / "none", [Run("A", 0)]))).empty


def test_two_kinds_of_weights_are_not_mixed(tmp_path: Path) -> None:
    frame = pd.concat([sampled(tmp_path / "a"), sampled(tmp_path / "b", weights="raw")])
    with pytest.raises(AmbiguousCells, match="one weights"):
        over_nfe(frame)
    assert len(over_nfe(frame, weights="raw")) == 6
