"""``sync`` uploads what ``diagnose`` found, once."""

from __future__ import annotations

from pathlib import Path

from helpers import tracking as fake
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.tracking.sync import sync, tracking_uri

KEY = "1a2b3c4d5e"
FACTS = {
    "t_max": 1.0,
    "denoising": {"t": [0.5, 1.0], "rms": [0.2, 0.7]},
    "jump_error": [{"length": 1.0, "rms": 0.3}, {"length": 0.125, "rms": 0.01}],
}


def test_diagnostics_are_uploaded_once_and_again_when_changed(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    sweep = fake.make_sweep(root, "looked_at", [KEY])
    (run,) = sweep.runs()
    fake.complete(run)
    assert fake.counts(sync([sweep], root)) == (1, 0, 0, 0)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    before = fake.recorded(client, "looked_at")[KEY]
    assert not any("jump_error" in name for name in before["points"])

    write_json(run.diagnostics / "diagnostics.json", FACTS)
    (run.diagnostics / "loss_grid.png").write_bytes(b"picture")
    (run.diagnostics / "diagnostics.npz").write_bytes(b"arrays")
    assert fake.counts(sync([sweep], root)) == (0, 1, 0, 0)
    told = fake.recorded(client, "looked_at")[KEY]
    new = {name: p for name, p in told["points"].items() if name not in before["points"]}
    assert new == {
        "jump_error/1": [(0, 0.3)],
        "jump_error/0.125": [(0, 0.01)],
        "denoising_rms_vs_2ths_of_t_max": [(1, 0.2), (2, 0.7)],
    }
    assert told["info"].run_id == before["info"].run_id
    names = [f.path for f in client.list_artifacts(told["info"].run_id, "diagnostics")]
    assert sorted(names) == ["diagnostics/diagnostics.json", "diagnostics/loss_grid.png"]

    assert fake.counts(sync([sweep], root)) == (0, 0, 1, 0)
    changed = {**FACTS, "jump_error": [{"length": 1.0, "rms": 0.25}]}
    write_json(run.diagnostics / "diagnostics.json", changed)
    assert fake.counts(sync([sweep], root)) == (0, 1, 0, 0)
    again = fake.recorded(client, "looked_at")[KEY]
    assert again["run"].data.metrics["jump_error/1"] == 0.25
    assert again["points"]["denoising_rms_vs_2ths_of_t_max"] == [(1, 0.2), (2, 0.7)]
