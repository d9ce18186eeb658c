"""Fabricated run directories, and a reading of everything MLflow holds of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import warm

from fewstep.experiments.store.json_files import Json, write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking.sync import SyncReport

STARTED, FINISHED = "2026-01-02T03:04:05+00:00", "2026-01-02T03:05:45+00:00"  # 100 s
METRIC = {"name": "FD", "extractor": "cnn", "label": "FD-digits-cnn@597", "id": "0123456789ab"}


def make_sweep(root: Path, name: str, keys: list[str]) -> SweepDirectory:
    """A planned sweep: each run has its spec.json and nothing else."""
    plan = [{"key": key, "seed": 0, "choices": {"objective": "scm"}} for key in keys]
    about = {"name": name, "description": f"About {name}.", "axes": ["objective"], "runs": plan}
    write_json(root / name / "sweep.json", about)
    for key in keys:
        config = {
            "objective": {"name": "scm", "solver": "euler"},
            "backbone": {"name": "dit", "width": 64},
            "data": {"name": "digits", "note": "n" * 900},
            "training": {"steps": 1000, "lr": 1e-3, "betas": [0.9, 0.999], "clip": None},
            "seed": 0,
        }
        spec = {"version": 1, "key": key, "title": "sCM", "config": config, "created": STARTED}
        write_json(root / name / key / "spec.json", spec)
    return SweepDirectory(root / name)


def train(run: RunDirectory, steps: range, more: Json | None = None) -> None:
    """Append lines of training, as a running trial does."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    with run.metrics_file.open("a", encoding="utf-8") as file:
        for step in steps:
            line = {"step": step, "loss": 1 / (1 + step), "lr": 1e-3, "images_seen": 128 * step}
            line |= {"grad_norm": 0.5, "seconds": 0.25 * step} | (more or {})
            file.write(json.dumps(line) + "\n")


def evaluate(
    run: RunDirectory, nfe: int, value: float, metric: Json = METRIC, **setting: Any
) -> None:
    cell = {"steps": nfe, "times": None, "sampler": {"solver": "euler"}, "weights": "ema"}
    cell |= {"guidance": 1.0, "sample_set": 0} | setting
    stem = f"{nfe}-" + "-".join(str(cell[k]) for k in ("weights", "guidance", "sample_set"))
    stem += "" if metric is METRIC else f"-{metric['id']}"
    told = {"cell": cell, "metric": metric, "value": value, "floor": 10.5, "nfe": nfe}
    write_json(run.cell_file(stem), told | {"seconds": 1.0, "images_per_second": 597.0})


def finish(run: RunDirectory, source: str = "aaaa") -> None:
    provenance = {"commit": "c0ffee", "dirty": False, "host": "node1", "started": STARTED}
    provenance |= {"finished": FINISHED, "objective_source": source, "backbone_source": "bbbb"}
    result = {"key": run.key, "steps": 40, "steps_per_second": 4.0, "peak_memory_bytes": 10**9}
    run.remove("failure")
    run.write("result", result | {"loss": 0.1, "provenance": provenance})


def fail(run: RunDirectory, kind: str = "nan") -> None:
    failure = {"key": run.key, "class": kind, "message": "loss is NaN", "finished": FINISHED}
    run.write("failure", failure)


def complete(run: RunDirectory, steps: int = 40) -> None:
    train(run, range(steps))
    for nfe in (1, 2, 4):
        evaluate(run, nfe, 100.0 / nfe)
    finish(run)


def recorded(client: Any, sweep: str) -> dict[str, dict[str, Any]]:
    """All MLflow holds of a sweep: run key ("" for the parent) -> run, and metric -> points.

    Fails where a key has two runs.
    """
    experiment = client.get_experiment_by_name(f"fewstep/{sweep}")
    told: dict[str, dict[str, Any]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        key = run.data.tags.get("fewstep.key", "")
        assert key not in told, f"two runs of {key!r}"
        points = {
            name: sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        }
        told[key] = {"run": run, "points": points, "tags": run.data.tags, "info": run.info}
    return told


def assert_mirrored(client: Any, sweep: SweepDirectory, where: Path) -> None:
    """MLflow holds of a sweep's finished runs what their files say: all of it, and nothing twice.

    Written from the files alone, on purpose without the code that reads them for ``sync``.
    Artifacts are downloaded below ``where``.
    """
    told = recorded(client, sweep.name)
    plan = json.loads((sweep.path / "sweep.json").read_text())
    assert set(told) == {"", *(run["key"] for run in plan["runs"])}
    parent = told[""]["info"].run_id
    assert told[""]["tags"]["fewstep.status"] == f"{len(plan['runs'])} done"
    assert _artifacts(client, parent, where) == _files(sweep.path, "report")
    for folder in (sweep.path / run["key"] for run in plan["runs"]):
        run = told[folder.name]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        expected = {
            name: sorted((line["step"], line[name]) for line in lines)
            for name in lines[0]
            if name != "step"
        }
        cells = [json.loads(f.read_text()) for f in (folder / "evaluations").glob("*.json")]
        expected["fd_vs_nfe"] = sorted((cell["nfe"], cell["value"]) for cell in cells)
        for cell in cells:
            expected[f"fd_nfe_{cell['nfe']}"] = [(0, cell["value"])]
            expected[f"images_per_second_nfe_{cell['nfe']}"] = [(0, cell["images_per_second"])]
        expected["fd_floor"] = [(0, cells[0]["floor"])]
        result = json.loads((folder / "result.json").read_text())
        expected["final_loss"] = [(0, result["loss"])]
        for cost in ("steps_per_second", "peak_memory_bytes"):
            expected[cost] = [(0, result[cost])]
        assert run["points"] == expected
        config = json.loads((folder / "spec.json").read_text())["config"]
        leaves = {f"{k}.{name}" if isinstance(v, dict) else k: value
                  for k, v in config.items()
                  for name, value in (v.items() if isinstance(v, dict) else [("", v)])}  # fmt: skip
        assert run["run"].data.params.keys() == leaves.keys()
        assert run["run"].data.params["training.lr"] == str(leaves["training.lr"])
        assert run["run"].data.params["backbone.width"] == str(leaves["backbone.width"])
        assert len(run["run"].inputs.dataset_inputs) == 1
        tags = {"mlflow.parentRunId": parent, "fewstep.status": "done", "fewstep.commit": "c0ffee",
                "fewstep.axis.objective": "scm", "fewstep.sweep": sweep.name}  # fmt: skip
        assert tags.items() <= run["tags"].items()
        assert "fewstep.synced" in run["tags"]
        assert run["info"].status == "FINISHED"
        assert _artifacts(client, run["info"].run_id, where) == _files(folder, "diagnostics")


def _files(folder: Path, name: str) -> dict[str, bytes]:
    files = (file for file in (folder / name).rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _artifacts(client: Any, run_id: str, where: Path) -> dict[str, bytes]:
    folder = where / run_id
    folder.mkdir(parents=True)
    client.download_artifacts(run_id, "", str(folder))
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def start(root: Path, sweep: SweepDirectory, cwd: Path, uri: str = "") -> subprocess.Popen[bytes]:
    """A process that syncs, and prints its counts."""
    command = [
        sys.executable,
        "-m",
        "helpers.sync_once",
        str(root),
        str(sweep.path),
        *filter(None, [uri]),
    ]
    told = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command, cwd=cwd, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def killed(root: Path, sweep: SweepDirectory, moment: str, n: int) -> None:
    """A process that syncs, and kills itself on the way (``helpers.killed``)."""
    given = (moment, n, "SIGKILL", "helpers.sync_once", root, sweep.path)
    said = root.parent / "said"
    process = warm.start(
        "helpers.killed", *given, cwd=Path.cwd(), environment=os.environ, out=said, err=said
    )
    process.join(180)
    assert process.exitcode == -signal.SIGKILL, said.read_text()


def counts(report: SyncReport) -> tuple[int, int, int, int]:
    return report.created, report.updated, report.unchanged, report.waiting


@pytest.fixture(autouse=True)
def clean_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sync leaves its working directory (and the environment's URI) alone."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    assert list(cwd.iterdir()) == []
