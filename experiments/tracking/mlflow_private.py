"""All that rests on MLflow's private interfaces; each has a fallback to the public one.

Checked with MLflow 3.10 to 3.17. Where a version has them no more, a sync is slower, or the pages
show MLflow's own layout; what is recorded is the same.
"""

import base64
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

Json = dict[str, Any]


class Held(NamedTuple):
    """What a database holds of an experiment: by ``fewstep.key``, of its active runs.

    ``synced``: their fingerprints, more than one where runs are there twice. ``noted``: whether the
    experiment has our description. ``problems``: a line for each run that has one.
    """

    experiment: str
    artifacts: str
    noted: bool
    synced: dict[str, list[str | None]]
    problems: list[str]


def held_by_sqlite(file: Path, experiment: str) -> Held | None:
    """What the database in ``file`` holds of ``experiment``; None where that cannot be read.

    To import MLflow takes three seconds, and to list 2,000 runs with it another six.
    """
    uri = f"file:{quote(str(file))}?mode=ro"
    runs = dict[str, dict[str, str]]()
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            [(id, artifacts)] = database.execute(
                "SELECT experiment_id, artifact_location FROM experiments "
                "WHERE name = ? AND lifecycle_stage = 'active'", (experiment,),
            )  # fmt: skip
            noted = database.execute(
                "SELECT 1 FROM experiment_tags WHERE experiment_id = ? AND key = ?",
                (id, "fewstep.description"),
            ).fetchall()
            for run, key, value in database.execute(
                "SELECT run_uuid, key, value FROM tags JOIN runs USING (run_uuid) "
                "WHERE experiment_id = ? AND lifecycle_stage = 'active' AND key IN "
                "('fewstep.role', 'fewstep.key', 'fewstep.synced', 'fewstep.problem')", (id,),
            ):  # fmt: skip
                runs.setdefault(run, {})[key] = value
    except (sqlite3.Error, ValueError):  # no such file, another layout, no such experiment
        return None
    held = Held(str(id), artifacts, bool(noted), {}, [])
    for tags in runs.values():
        if "fewstep.role" in tags:
            of_key = held.synced.setdefault(tags.get("fewstep.key", ""), [])
            of_key.append(tags.get("fewstep.synced"))
            held.problems.extend(tags.get("fewstep.problem", "").splitlines())
    return held


@contextmanager
def one_transaction(client: Any) -> Iterator[bool]:
    """Whether what is written to a SQL store inside is one transaction: all of it, or nothing.

    Each call of MLflow is a transaction that waits for the disk, ten for one run. So the store's
    sessions join an outer transaction (SQLAlchemy's recipe): their commits wait for its end, and a
    rollback of one ends it. False where this MLflow does not allow it.
    """
    from sqlalchemy.orm import sessionmaker

    try:
        from mlflow.store.db.utils import _get_managed_session_maker

        store = client._tracking_client.store
        own, engine, db_type = store.ManagedSessionMaker, store.engine, store.db_type
    except (ImportError, AttributeError):
        yield False
        return
    with engine.begin() as connection:
        joined = sessionmaker(bind=connection, join_transaction_mode="rollback_only")
        store.ManagedSessionMaker = _get_managed_session_maker(joined, db_type)
        try:
            yield True
        finally:
            store.ManagedSessionMaker = own


def last_steps(client: Any, run: Any) -> dict[str, int]:
    """The step of the latest value of each metric of an MLflow run."""
    try:
        return {metric.key: metric.step for metric in run.data._metric_objs}
    except AttributeError:
        read = client.get_metric_history
        return {key: max(m.step for m in read(run.info.run_id, key)) for key in run.data.metrics}


def view_tags(views: Mapping[str, Json]) -> dict[str, str]:
    """Tags of an experiment that keep states of MLflow's page, by the keys that open them."""
    return {f"mlflow.sharedViewState.{key}": _packed(state) for key, state in views.items()}


def view_address(experiment: str, key: str) -> str:
    """The page that opens a view; one that does not know the key shows the experiment's runs."""
    shown = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"#/experiments/{experiment}/runs?{shown}"


def _packed(state: Json) -> str:
    text = json.dumps(state, separators=(",", ":"))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
