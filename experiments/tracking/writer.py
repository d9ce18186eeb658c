"""Writing to MLflow so that it holds what the files hold, and nothing twice.

Every function reads what is there and adds what is missing, so each may be killed and run again.
``mirror`` is always an MLflow run, ``client`` an ``MlflowClient``.
"""

import getpass
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.experiments.tracking.mlflow_private import last_steps
from fewstep.experiments.tracking.run_record import Point, Record, metric_name
from fewstep.experiments.tracking.store import is_server

ENTITIES_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits; and 100 tags
RUNS_ASKED_FOR_BY_KEY = 20  # beyond that, listing them all costs less
SYNCED = "fewstep.synced"
SOURCES = ("fewstep.objective_source", "fewstep.backbone_source")


def find_experiment(client: Any, sweep: str, root: Path, uri: str) -> Any:
    """The experiment ``fewstep/<sweep>``, created where there is none.

    With a database, artifacts go under the run root (by default MLflow would put them in the
    working directory); a server has its own folder for them.
    """
    name = experiment_name(sweep)
    artifacts = None if is_server(uri) else artifacts_of(sweep, root)
    if (experiment := client.get_experiment_by_name(name)) is None:
        from mlflow.exceptions import MlflowException

        tags = {"fewstep.sweep": sweep, "mlflow.experimentKind": "custom_model_development"}
        try:
            client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException:  # somebody else, or our own request, whose answer was lost
            if client.get_experiment_by_name(name) is None:
                raise
        experiment = client.get_experiment_by_name(name)
    home = experiment.artifact_location
    if artifacts is not None and not is_home(home, sweep, root, uri):
        raise UserError(
            f"{uri} was made for another run root ({home}): this one was moved or copied; remove "
            f"{root / 'mlflow.db'}, which only mirrors the runs, and sync again"
        )
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} is deleted; restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}` or remove it for good with `mlflow gc`"
        )
    return experiment


def experiment_name(sweep: str) -> str:
    """The name of a sweep's experiment."""
    return f"fewstep/{sweep}"


def artifacts_of(sweep: str, root: Path) -> str:
    """Where a database's artifacts of a sweep are."""
    return (root / "mlartifacts" / sweep).resolve().as_uri()


def is_home(artifacts: str, sweep: str, root: Path, uri: str) -> bool:
    """Whether the run root's own database was made for it, and not moved or copied here."""
    own = uri.endswith(f"{root.resolve()}/mlflow.db")
    return not own or artifacts == artifacts_of(sweep, root)


def find_runs(client: Any, experiment: str, keys: Collection[str]) -> dict[str, Any]:
    """The experiment's runs of ``keys``, perhaps others too, by key; the parent as ``""``.

    Other programs' runs are ignored. Where a key has two runs (a server died after it made one,
    before it said so, and was asked again) the fuller one stays and the other is deleted.
    """
    by_key: dict[str, list[Any]] = {}
    for condition in _conditions(keys):
        token = None
        while True:
            page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
            for run in page:
                if "fewstep.role" in run.data.tags:
                    by_key.setdefault(run.data.tags.get("fewstep.key", ""), []).append(run)
            if not (token := page.token):
                break
    for runs in by_key.values():
        runs.sort(key=lambda r: (SYNCED in r.data.tags, len(r.data.metrics), len(r.data.params),
                                 r.info.run_id))  # fmt: skip
        for double in runs[:-1]:
            client.delete_run(double.info.run_id)
    return {key: runs[-1] for key, runs in by_key.items()}


def _conditions(keys: Collection[str]) -> list[str]:
    plain = re.compile(r"[A-Za-z0-9_.-]*")  # what needs no quoting
    if len(keys) > RUNS_ASKED_FOR_BY_KEY or not all(map(plain.fullmatch, keys)):
        return [""]
    parent = "tags.`fewstep.role` = 'sweep'"
    return [f"tags.`fewstep.key` = '{key}'" if key else parent for key in keys]


def create_run(
    client: Any, experiment: str, name: str, started: int, tags: Mapping[str, str]
) -> Any:
    """A new run, with its tags in the same transaction: it can be found from the start."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    about = {"mlflow.user": user, "mlflow.source.name": "fewstep"} | dict(tags)
    return client.create_run(experiment, start_time=started, tags=about, run_name=name)


def set_status(client: Any, mirror: Any, status: str, ended: int | None) -> None:
    """Set ``FINISHED``, ``FAILED``, ``KILLED``, ... and the end, where they are not so already."""
    info = mirror.info
    if info.status == status and (ended is None or info.end_time == ended):
        return
    if ended is None:  # set_terminated would say "ended now"
        client.update_run(info.run_id, status=status)
    else:
        client.set_terminated(info.run_id, status=status, end_time=ended)


def drop_tags(client: Any, mirror: Any, kept: Iterable[str]) -> None:
    """Remove our tags that no longer hold, such as the failure of a run that was mended."""
    for key in mirror.data.tags.keys() - {*kept, SYNCED, *SOURCES}:
        if key.startswith("fewstep."):
            client.delete_tag(mirror.info.run_id, key)


def log_record(client: Any, mirror: Any, record: Record, fingerprint: str) -> None:
    """Log the params and points that MLflow does not hold yet; the fingerprint last of all."""
    from mlflow.entities import Metric, Param, RunTag

    points = [
        Metric(key=point.key, value=point.value, step=point.step, timestamp=point.milliseconds)
        for point in _missing(client, mirror, record)
    ]
    params = [Param(k, v) for k, v in record.params.items() if k not in mirror.data.params]
    wanted = record.tags | {SYNCED: fingerprint}
    tags = [RunTag(k, v) for k, v in wanted.items() if mirror.data.tags.get(k) != v]
    room = ENTITIES_PER_BATCH - min(len(params), PARAMS_PER_BATCH) - len(tags)
    chunks = _chunks(points, room), _chunks(params, PARAMS_PER_BATCH)
    batches: list[Any] = list(zip_longest(*chunks, fillvalue=[])) or [([], [])]
    for batch in batches[:-1]:
        client.log_batch(mirror.info.run_id, *batch)
    # A store writes params, then metrics, then tags: within the call the fingerprint is last too.
    client.log_batch(mirror.info.run_id, *batches[-1], tags=tags)


def _missing(client: Any, mirror: Any, record: Record) -> list[Point]:
    """The points to log: new steps of the curves, and values that differ from the latest.

    Points are logged in the order of their steps, a batch whole or not at all. So of a run that
    trains, the new ones lie beyond the latest step. At its end, each point is compared.
    """
    latest = mirror.data.metrics
    curves = {(p.key, p.step): p for p in record.curves}  # of a step written again: the later line
    values = {(p.key, p.step): p for p in record.values}
    if record.status == "RUNNING":
        last = last_steps(client, mirror)
        curves = {(key, step): p for (key, step), p in curves.items() if step > last.get(key, -1)}
        stepped = {key for key, step in values if step}
    else:
        stepped = {key for key, _ in curves} | {key for key, step in values if step}
    logged = {
        (key, metric.step): metric.value
        for key in sorted(stepped & latest.keys())
        for metric in client.get_metric_history(mirror.info.run_id, key)
    }
    new = [
        point
        for (key, step), point in values.items()
        if not _same(logged.get((key, step)) if step else latest.get(key), point.value)
    ]
    return [*(point for at, point in curves.items() if at not in logged), *new]


def log_dataset(client: Any, mirror: Any, data: Any) -> None:
    """The run's data as an MLflow dataset: its name, and a digest of its configuration."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = getattr(mirror, "inputs", None)
    if not isinstance(data, Mapping) or (inputs and inputs.dataset_inputs):
        return
    source = json.dumps(dict(data), sort_keys=True)
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    dataset = Dataset(metric_name(str(data.get("name"))), digest, "fewstep", source)
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(mirror.info.run_id, datasets=[DatasetInput(dataset, context)])


def log_folder(client: Any, mirror: Any, folder: Path) -> None:
    """The files of ``folder`` as artifacts under its name (arrays of samples excepted)."""
    for file in artifact_files(folder):
        artifact_path = file.parent.relative_to(folder.parent).as_posix()
        client.log_artifact(mirror.info.run_id, str(file), artifact_path=artifact_path)


def artifact_files(folder: Path) -> list[Path]:
    """The files below ``folder`` that are logged, in name order."""
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".npz", ".npy"))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _same(old: float | None, new: float) -> bool:
    return old == new or (old is not None and old != old and new != new)  # NaN equals NaN
