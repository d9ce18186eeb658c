"""Which MLflow store, and opening it: the one place where MLflow is imported and a store created.

With MLflow 3.17 a fresh sqlite database takes seconds of migrations, and is broken for good when
two processes create it at once or one is killed meanwhile: so it is made under a lock and another
name. An unreachable server is retried for minutes: so it is asked for its health first.
"""

import logging
import os
import shlex
import sqlite3
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import Timeout

from fewstep.errors import UserError
from fewstep.files import locked

SQL = ("sqlite", "postgresql", "mysql", "mssql")
HTTP = ("http", "https")
PORT = 5000  # of the UI on this machine
SECONDS_TO_ANSWER = 10.0
SECONDS_FOR_THE_LOCK = 600.0
CHARACTERS_TOLD = 300  # of an error's first line: MLflow's may hold whole requests
PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED")
QUIET = {  # no telemetry, no minutes of retries; what the user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class StoreUnavailable(UserError):
    """The store does not answer now (a server or its database is down, sqlite is busy)."""


def tracking_uri(root: Path, configured: str | None = None) -> str:
    """``configured``, else ``$MLFLOW_TRACKING_URI``, else sqlite at ``<root>/mlflow.db``.

    A relative sqlite path is made absolute, so that the URI means the same in every folder. Raises
    ``UserError``: MLflow has no such store (a plain folder among them), or sqlite without a file.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        default = str((root / "mlflow.db").resolve())
        if "?" in default:  # a URI's options begin there, and SQLAlchemy knows no escape
            raise UserError(f"sqlite cannot be at {default!r}: set tracking.uri (no '?' in it)")
        return f"sqlite:///{default}"
    if _scheme(uri) not in SQL + HTTP or "://" not in uri:
        choices = "sqlite:///<file>, postgresql://..., mysql://..., mssql://..., http(s)://<server>"
        raise UserError(f"unsupported tracking.uri {_shown(uri)!r} (choices: {choices})")
    if _scheme(uri) != "sqlite":
        return uri
    head, _, path = uri.partition(":///")
    if path in ("", ":memory:"):
        raise UserError(f"tracking.uri {uri!r} names no file (expected sqlite:///<file>)")
    return f"{head}:///{Path(path).absolute()}"


def is_server(uri: str) -> bool:
    """Whether ``uri`` is an MLflow server, which decides itself where artifacts go."""
    return _scheme(uri) in HTTP


def ui_command(uri: str) -> str:
    """The shell command that opens the dashboards of this store, without activating a venv."""
    if is_server(uri):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    script = Path(sys.executable).with_name("mlflow")  # not resolved: the venv's own
    mlflow = [str(script)] if script.is_file() else [sys.executable, "-m", "mlflow"]
    options = ["--backend-store-uri", uri, "--port", str(PORT), "--workers", "1"]
    return shlex.join([*mlflow, "ui", *options])


def ui_address(uri: str, page: str) -> str:
    """Where a browser finds ``page`` (``#/...``) on the server, or once ``ui_command`` runs."""
    return f"{uri.rstrip('/') if is_server(uri) else f'http://127.0.0.1:{PORT}'}/{page}"


@contextmanager
def open_store(uri: str) -> Iterator[Any]:
    """An ``MlflowClient`` on ``uri``; a sqlite database is created where there is none.

    After ``check_store``; hold ``store_lock``. Raises as ``store_errors``.
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    # The fluent API is never used: it would keep a global active run and a global tracking URI.
    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # importing MLflow has set its level
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their errors are reported in one line
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with store_errors(uri):
        if (file := sqlite_file(uri)) and file.stat().st_size == 0:
            _create(file)
        yield MlflowClient(tracking_uri=uri)


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Errors of MLflow and of what it stands on, as a ``StoreUnavailable`` or a ``UserError``."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, ImportError) as error:
        if isinstance(error, MlflowException):
            passing = error.error_code in PASSING
        elif isinstance(error, HTTPError) and error.response is not None:
            passing = error.response.status_code >= 500
        else:
            passing = isinstance(error, RequestException | OperationalError)
        first = (str(error).splitlines() or [""])[0] or repr(error)
        kind = StoreUnavailable if passing else UserError
        raise kind(f"MLflow at {_shown(uri)} failed: {first[:CHARACTERS_TOLD]}") from error


def store_lock(uri: str, root: Path) -> Any:
    """Held while a database is written to: one writer at a time creates it and fills it."""
    if is_server(uri):  # takes many at once
        return nullcontext()
    file = sqlite_file(uri)
    return _locked(file.with_name(f"{file.name}.lock") if file else root / ".sync.lock")


def sweep_lock(uri: str, sweep: Path) -> Any:
    """Held while a sweep is written to a server: another writer would create its runs as well."""
    return _locked(sweep / ".sync.lock") if is_server(uri) else nullcontext()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file, SECONDS_FOR_THE_LOCK):
            yield
    except Timeout:
        raise StoreUnavailable(f"another sync is running: {file} stayed locked") from None


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite database; None for every other store."""
    if _scheme(uri) != "sqlite":
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def _create(file: Path) -> None:
    from mlflow import MlflowClient

    new = file.with_name(f".{file.name}.new")
    for rest in (new, new.with_name(f"{new.name}-journal")):  # of one killed meanwhile
        rest.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
    new.replace(file)


def check_store(uri: str) -> None:
    """Raise as ``store_errors`` within seconds, before the slow import, where no store answers."""
    if is_server(uri):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError:
            pass  # someone answers: authentication and the like are MLflow's to tell
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            if not isinstance(why, ssl.SSLError):  # MLflow has its own settings for TLS
                raise StoreUnavailable(
                    f"no MLflow server answers at {_shown(uri)} ({why})"
                ) from None
    elif path := sqlite_file(uri):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot open the MLflow database {path} ({error})") from None


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0].lower()


def _shown(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri
    except ValueError:
        return uri
