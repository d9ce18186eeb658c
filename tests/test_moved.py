"""Modules can be imported by the names they had in version 0.1."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

import pytest

from fewstep._moved import NEW_NAMES, MovedModules


@pytest.mark.parametrize("old", NEW_NAMES)
def test_every_new_name_is_a_module_and_every_old_one_is_free(old: str) -> None:
    new = find_spec(NEW_NAMES[old])
    assert new is not None
    assert new.origin is not None
    spec = find_spec(old)
    assert spec is not None
    assert isinstance(spec.loader, MovedModules)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fewstep.objectives.base", "fewstep.objectives.core.base"),
        ("fewstep.experiments.data.hub", "fewstep.experiments.data.huggingface"),
        ("fewstep.analysis.origin", "fewstep.analysis.columns"),
    ],
)
def test_an_old_name_gives_the_same_module_and_warns_once(
    old: str, new: str, recwarn: pytest.WarningsRecorder
) -> None:
    sys.modules.pop(old, None)
    for _ in range(2):
        assert importlib.import_module(old) is importlib.import_module(new)
    assert importlib.import_module(new).__spec__.name == new  # type: ignore[union-attr]
    (warning,) = [w for w in recwarn if w.category is DeprecationWarning and old in str(w.message)]
    assert str(warning.message).startswith(f"{old} is called {new} since fewstep 0.2")


# 0.1's module and name, and the new module and name
OLD_NAMES = """
analysis.selection.Mixed analysis.filters.AmbiguousCells
analysis.statistics.holm analysis.significance.holm
cli.main.main cli.app.main
experiments.data.store.kept experiments.data.memmap_cache.cached_splits
backbones.base.Conditioned backbones.base.ConditioningSettings
experiments.claim.Claim experiments.store.lease.RunLease
experiments.claim.Busy experiments.store.lease.RunLocked
experiments.claim.Superseded experiments.store.lease.LeaseLost
experiments.claim.at_work experiments.store.lease.live_lease
experiments.rundir.Unreadable experiments.store.json_files.CorruptFile
experiments.parallel.Alone experiments.distributed.data_parallel.SingleProcess
experiments.parallel.Copied experiments.distributed.data_parallel.DataParallel
experiments.parallel.Split experiments.distributed.data_parallel.FullyShard
experiments.drawing.Drawn experiments.evaluation.sampling.SampleBatch
experiments.drawing.Cell experiments.evaluation.sampling.SamplingConfig
experiments.measure.Measure experiments.evaluation.measurement.MetricInstance
experiments.tracking_store.StoreAway experiments.tracking.store.StoreUnavailable
experiments.tracking_sweep.Look experiments.tracking.sweep_sync.SweepSnapshot
objectives.conformance.Finding objectives.conformance.CheckResult
objectives.conformance.conform objectives.conformance.run_checks
reports.text.account reports.content.formatting.run_counts
sweeps.slurm.job.Ghosts sweeps.slurm.array_task.StaleAttempts
sweeps.status.left_over sweeps.status.orphaned_runs
"""


@pytest.mark.parametrize("pair", OLD_NAMES.strip().splitlines())
@pytest.mark.filterwarnings("ignore:.*since fewstep:DeprecationWarning")
def test_an_old_name_in_a_module_gives_the_new_object(pair: str) -> None:
    (old, name), (new, new_name) = (f"fewstep.{path}".rsplit(".", 1) for path in pair.split())
    value = getattr(importlib.import_module(old), name)
    assert value is getattr(importlib.import_module(new), new_name)


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fewstep.objectives.nothing")


def test_the_configuration_was_a_module() -> None:
    with pytest.warns(DeprecationWarning, match=r"config.run_config.compose since"):
        from fewstep.experiments.config import compose  # type: ignore[attr-defined]
    from fewstep.experiments.config import run_config

    assert compose is run_config.compose
