"""Where MLflow's private interfaces are gone, a sync says the same through the public ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.experiments.tracking import mlflow_private
from fewstep.experiments.tracking.sync import sync, tracking_uri

KEYS = [f"{i:010x}" for i in range(3)]


def without_sessions(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "mlflow.store.db.utils", None)


@pytest.mark.parametrize("gone", [None, without_sessions])
def test_without_a_transaction_of_ours_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: Any
) -> None:
    root = tmp_path / "runs"
    sync([], root)  # creates the database
    sweep = fake.make_sweep(root, "public", KEYS)
    for run in sweep.runs():
        fake.train(run, range(4))
    if gone is not None:
        gone(monkeypatch)
    from mlflow import MlflowClient

    with mlflow_private.one_transaction(MlflowClient(tracking_uri(root))) as together:
        assert together is (gone is None)
    assert fake.counts(sync([sweep], root)) == (3, 0, 0, 0)
    for run in sweep.runs():  # resumed, and done
        fake.train(run, range(4, 6))
        fake.evaluate(run, 2, 50.0)
        fake.finish(run)
    assert fake.counts(sync([sweep], root)) == (0, 3, 0, 0)
    fake.assert_mirrored(MlflowClient(tracking_uri(root)), sweep, tmp_path / "artifacts")


def test_the_latest_steps_are_read_from_the_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    sweep = fake.make_sweep(root, "steps", KEYS[:1])
    fake.train(sweep.runs()[0], range(5))
    sync([sweep], root)
    from mlflow import MlflowClient
    from mlflow.entities import RunData

    client = MlflowClient(tracking_uri(root))
    run = fake.recorded(client, sweep.name)[KEYS[0]]["run"]
    private = mlflow_private.last_steps(client, run)
    assert private["loss"] == 4
    monkeypatch.delattr(RunData, "_metric_objs", raising=False)
    del run.data.__dict__["_metric_objs"]
    assert mlflow_private.last_steps(client, run) == private
