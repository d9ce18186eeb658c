"""Which MLflow store, and opening it: the one place where MLflow is imported and a store created.

Facts of MLflow 3.17 this rests on: the file store raises; a fresh sqlite database takes seconds of
migrations and is broken for good when two processes create it at once (so: under the lock); an
unreachable server is retried for minutes (so: it is asked for its health first).
"""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fewstep.errors import UserError

SQL = ("sqlite", "postgresql", "mysql", "mssql")
HTTP = ("http", "https")
SECONDS_TO_ANSWER = 10.0


def tracking_uri(root: Path, configured: str | None = None) -> str:
    """``configured``, else ``$MLFLOW_TRACKING_URI``, else sqlite at ``<root>/mlflow.db``.

    A relative sqlite path is made absolute, so that the URI means the same in every folder.

    Raises:
        UserError: MLflow has no such store (a plain folder among them), or sqlite without a file.
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
    options = ["--backend-store-uri", uri, "--port", "5000", "--workers", "1"]
    return shlex.join([*mlflow, "ui", *options])


@contextmanager
def open_store(uri: str) -> Iterator[Any]:
    """An ``MlflowClient`` on ``uri``; a sqlite database is created where there is none.

    Hold the sync lock. What goes wrong at the store is told as one line.

    Raises:
        UserError: the store cannot be reached, opened or written.
    """
    _check(uri)
    _quiet()
    # The fluent API is never used: it would keep a global active run and a global tracking URI.
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # importing MLflow has set its level
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, RequestException, SQLAlchemyError, ImportError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"MLflow at {_shown(uri)} failed: {first or error!r}") from error


def _quiet() -> None:
    """No telemetry, no minutes of retries; what the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _check(uri: str) -> None:
    """Fail within seconds, before the slow import, where the store cannot work."""
    if is_server(uri):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError:
            pass  # someone answers: authentication and the like are MLflow's to tell
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLError):  # MLflow has its own settings for TLS
                raise UserError(f"no MLflow server answers at {_shown(uri)} ({reason})") from None
    elif _scheme(uri) == "sqlite":
        path = Path(uri.partition(":///")[2].partition("?")[0])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
            connection.close()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot open the MLflow database {path} ({error})") from None


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0].lower()


def _shown(uri: str) -> str:
    """``uri`` without its password."""
    try:
        parts = urlsplit(uri)
        return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri
    except ValueError:
        return uri
