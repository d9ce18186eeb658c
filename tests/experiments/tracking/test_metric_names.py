"""Values of two metrics never share a name in MLflow, whenever and by whom they are synced."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking.charts import METHODS, RUNS
from fewstep.experiments.tracking.run_record import unique_metric_name
from fewstep.experiments.tracking.sweep_sync import SweepSync
from fewstep.experiments.tracking.sync import sync

KEYS = ["1a2b3c4d5e", "2b3c4d5e6f", "3c4d5e6f70"]
TWO_HUNDRED: Json = {"name": "FD", "label": "FD-gaussians-raw@200", "id": "9d8d00000000"}
HUNDRED: Json = {"name": "FD", "label": "FD-gaussians-raw@100", "id": "6c7b00000000"}
OTHER_DATA: Json = {"name": "FD", "label": "FD-gaussians-raw@100", "id": "777700000000"}
OWNERS = {
    "fewstep.metric.fd": "FD-gaussians-raw@200 (9d8d00000000)",
    "fewstep.metric.fd-gaussians-raw_100": "FD-gaussians-raw@100 (6c7b00000000)",
}


def quality(client: Any, sweep: SweepDirectory) -> dict[str, dict[str, Any]]:
    """What MLflow holds of each run's FD, by name."""
    told = fake.recorded(client, sweep.name)
    return {
        key: {n: p for n, p in told[key]["points"].items() if n.startswith("fd")}
        for key in KEYS
        if key in told
    }


def tags(client: Any, sweep: SweepDirectory) -> dict[str, str]:
    return dict(client.get_experiment_by_name(f"fewstep/{sweep.name}").tags)


def curves(name: str, value: float) -> dict[str, Any]:
    """What one cell of one NFE is recorded as."""
    return {
        f"{name}_vs_nfe": [(1, value)],
        f"{name}_nfe_1": [(0, value)],
        f"{name}_floor": [(0, 10.5)],
    }


def test_a_second_identity_has_its_own_name(client: Any, root: Path, sweep: SweepDirectory) -> None:
    first, second, third = sweep.runs()
    for run, value, metric in (
        (first, 8.0, TWO_HUNDRED),
        (second, 5.0, HUNDRED),
        (third, 3.0, OTHER_DATA),
    ):
        fake.evaluate(run, 1, value, metric)
        fake.finish(run)
    sync([sweep], root)
    assert quality(client, sweep) == {
        KEYS[0]: curves("fd", 8.0),
        KEYS[1]: curves("fd-gaussians-raw_100", 5.0),
        KEYS[2]: curves("fd-gaussians-raw_100-777700000000", 3.0),  # the label is taken as well
    }
    assert OWNERS.items() <= tags(client, sweep).items()
    told = fake.recorded(client, sweep.name)
    owned = {k: v for k, v in told[KEYS[1]]["tags"].items() if k.startswith("fewstep.metric.")}
    assert owned == dict([list(OWNERS.items())[1]])  # a run's tags are of its own metrics


def test_who_comes_first_keeps_the_name(client: Any, root: Path, sweep: SweepDirectory) -> None:
    """Whatever the plan's order, and though each sync here knows nothing of the one before."""
    early, late, both = sweep.runs()
    fake.evaluate(late, 1, 8.0, TWO_HUNDRED)
    fake.finish(late)
    sync([sweep], root)
    assert quality(client, sweep) == {KEYS[1]: curves("fd", 8.0)}
    fake.evaluate(early, 1, 5.0, HUNDRED)
    fake.finish(early)
    sync([sweep], root)
    fake.evaluate(both, 1, 4.0, HUNDRED)  # its file comes before the other's
    fake.evaluate(both, 1, 7.0, TWO_HUNDRED)
    fake.finish(both)
    sync([sweep], root)
    fake.evaluate(late, 1, 6.0, HUNDRED)  # a run that is done gains a cell
    sync([sweep], root)
    mine, others = "fd", "fd-gaussians-raw_100"
    expected = {
        KEYS[0]: curves(others, 5.0),
        KEYS[1]: curves(mine, 8.0) | curves(others, 6.0),
        KEYS[2]: curves(mine, 7.0) | curves(others, 4.0),
    }
    assert quality(client, sweep) == expected
    for file in sweep.path.rglob("*.json*"):
        os.utime(file)  # looked at again, in the plan's order
    assert fake.counts(sync([sweep], root)) == (0, 3, 0, 0)
    assert quality(client, sweep) == expected
    assert fake.counts(sync([sweep], root)) == (0, 0, 3, 0)


def test_a_name_is_kept_before_a_point_has_it(
    client: Any, root: Path, sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the first points, a sync has said whose they are."""
    early, late, _ = sweep.runs()
    fake.evaluate(late, 1, 8.0, TWO_HUNDRED)
    tell = SweepSync._write

    class Killed(BaseException):
        pass

    def and_die(*arguments: Any) -> Any:
        tell(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SweepSync, "_write", and_die)
        fake.finish(late)
        with pytest.raises(Killed):
            sync([sweep], root)
    fake.evaluate(early, 1, 5.0, HUNDRED)
    fake.finish(early)
    sync([sweep], root)
    assert quality(client, sweep) == {
        KEYS[0]: curves("fd-gaussians-raw_100", 5.0),
        KEYS[1]: curves("fd", 8.0),
    }


def test_a_run_told_under_the_name_of_another_is_told_anew(
    client: Any, root: Path, sweep: SweepDirectory
) -> None:
    """As syncs did before names were the sweep's: MLflow forgets points only with their run."""
    early, late, _ = sweep.runs()
    fake.evaluate(late, 1, 8.0, HUNDRED)
    fake.finish(late)
    sync([sweep], root)
    experiment = client.get_experiment_by_name(f"fewstep/{sweep.name}").experiment_id
    client.delete_experiment_tag(experiment, "fewstep.metric.fd")
    old = fake.recorded(client, sweep.name)[KEYS[1]]["info"].run_id
    fake.evaluate(early, 1, 5.0, TWO_HUNDRED)
    fake.finish(early)
    os.utime(late.path / "result.json")
    sync([sweep], root)
    assert quality(client, sweep) == {
        KEYS[0]: curves("fd", 5.0),
        KEYS[1]: curves("fd-gaussians-raw_100", 8.0),
    }
    assert client.get_run(old).info.lifecycle_stage == "deleted"
    assert OWNERS.items() <= tags(client, sweep).items()


def test_names_of_any_length_and_spelling() -> None:
    names: dict[str, str] = {}
    long = [{"name": "FD", "label": f"FD-{'x' * 300}@{n}", "id": f"{n:012}"} for n in range(3)]
    called = [unique_metric_name(metric, names) for metric in long]
    assert called == ["fd", f"fd-{'x' * 97}", f"fd-{'x' * 97}-000000000002"]
    assert [unique_metric_name(metric, names) for metric in reversed(long)] == called[::-1]
    spelt = [{"name": "KID", "label": label, "id": label} for label in ("KID-a@1", "KID-A_1", "")]
    assert len({unique_metric_name(metric, names) for metric in spelt}) == 3
    assert unique_metric_name({"name": "KID"}, names) == "kid-"  # as cells of long ago


@pytest.mark.parametrize("view", [METHODS, RUNS])
def test_the_views_show_each_identity(
    client: Any, root: Path, sweep: SweepDirectory, view: str
) -> None:
    for run, metric in zip(sweep.runs(), (TWO_HUNDRED, HUNDRED, HUNDRED), strict=True):
        fake.evaluate(run, 1, 8.0, metric)
        fake.finish(run)
    sync([sweep], root)
    packed = tags(client, sweep)[f"mlflow.sharedViewState.{view}"].removeprefix("deflate;")
    layout = json.loads(zlib.decompress(base64.b64decode(packed)))
    drawn = [chart.get("metricKey", "") for chart in layout["compareRunCharts"]]
    assert [k for k in drawn if "fd" in k] == ["fd_vs_nfe", "fd-gaussians-raw_100_vs_nfe"]
    assert layout["orderByKey"] == "metrics.`fd_nfe_1`"


def test_a_torn_cell_takes_the_charts_from_no_other(
    client: Any, root: Path, sweep: SweepDirectory
) -> None:
    for run in sweep.runs():
        fake.train(run, range(3))
        fake.evaluate(run, 1, 8.0, TWO_HUNDRED)
        fake.finish(run)
    (sweep.runs()[0].cell_file("torn")).write_text('{"cell": {}}')
    (problem,) = sync([sweep], root).problems
    assert KEYS[0] in problem
    assert quality(client, sweep).keys() == set(KEYS[1:])
    assert "fewstep.description" in tags(client, sweep)  # set with the charts
