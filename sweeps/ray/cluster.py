"""Ray itself: started here for one launch, or joined where it runs already."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import services
from ray.exceptions import RayError

from fewstep.errors import UserError
from fewstep.sweeps.cpu_threads import cores
from fewstep.sweeps.local.worker_pool import gpus
from fewstep.sweeps.ray.settings import RaySettings

ANSWER_SECONDS = 5.0
LOOK_SECONDS = 5.0
SILENT_SECONDS = 60.0  # after which a cluster is given up
LOST = 1  # exit code
SETTINGS = b"\4"  # the type of a frame of HTTP/2
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"
REFUSED = (
    "what answers there does not let us in; if it asks for a token, set RAY_AUTH_TOKEN, or copy "
    "the ~/.ray/auth_token of the machine that started it"
)


class Silent(ConnectionError):
    """Something accepts connections at an address, and does not answer as a Ray cluster."""


@contextlib.contextmanager
def connected(settings: RaySettings) -> Iterator[None]:
    """Connected to the cluster at ``settings.address``, or to one of our own that ends with us."""
    if ray.is_initialized():  # by a host program
        yield
        return
    with temporary_folder("ray-") as folder, contextlib.ExitStack() as watched:
        try:
            if settings.address is None:
                ours = share(settings)
                _init(  # RAY_ADDRESS would have it join another
                    address="local",
                    num_cpus=ours["CPU"],
                    num_gpus=ours["GPU"],
                    include_dashboard=False,
                    object_store_memory=settings.object_store_mb * 2**20,
                    _temp_dir=os.path.abspath(settings.temp_dir or folder),
                )
            else:
                host_port = reachable(settings.address)
                with _refusing(settings.address, REFUSED):
                    _init(address=host_port)
                print(f"joined the Ray cluster at {host_port}", flush=True)
                watched.enter_context(ending_if_silent(host_port))
            yield
        finally:
            ray.shutdown()  # of the connection, where a cluster was joined


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """In /tmp: Ray's default follows TMPDIR, and its sockets' names may have 107 bytes."""
    return tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp", ignore_cleanup_errors=True)


def reachable(address: str) -> str:
    """``HOST:PORT`` of the cluster; a UserError if none answers (Ray would wait for minutes)."""
    with _refusing(address):
        named, variable = address, os.environ.get("RAY_ADDRESS")
        if address == "auto":
            address = str(services.canonicalize_bootstrap_address(address))
            named = f"RAY_ADDRESS={variable}" if variable else address
        try:
            heard = answers(address)
        except Silent:
            told = f"what listens at {named} does not answer as a Ray cluster does"
            raise ConnectionError(told) from None
        if not heard:
            raise ConnectionError(f"nothing answers at {named}")
    return address


@contextlib.contextmanager
def _refusing(address: str, told: str | None = None) -> Iterator[None]:
    """What Ray and the network say of an address, as one line of ours, or ``told`` instead.

    Ray names the address as it resolved it, which nobody has typed.
    """
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = told or (str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise UserError(f"no Ray cluster at ray.address {address!r}: {reason}") from None


def answers(address: str) -> bool:
    """Whether a Ray cluster answers at ``HOST:PORT`` (else a ValueError); known within seconds.

    ``Silent`` where connections are accepted and nothing speaks as a cluster's head node does: for
    a process that hangs the kernel accepts them. A server of gRPC speaks at once, in HTTP/2.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not of the form HOST:PORT")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)
    except OSError:
        return False
    with connection:
        try:
            connection.sendall(GREETING)
            answer = connection.recv(9)
        except TimeoutError:
            raise Silent from None
        except OSError:
            answer = b""
    if answer[3:4] != SETTINGS and not os.environ.get("RAY_USE_TLS"):
        raise Silent
    return True


def lost() -> bool:
    """Whether the cluster that we are connected to is gone, or its raylet on this machine."""
    us = ray.get_runtime_context()
    here = us.get_node_id()
    with contextlib.suppress(Silent):
        return not answers(us.gcs_address) or not any(
            node["Alive"] and node["NodeID"] == here for node in ray.nodes()
        )
    return False  # it may only be busy: ``ending_if_silent`` knows


@contextlib.contextmanager
def ending_if_silent(address: str) -> Iterator[None]:
    """A context in which this process ends, as if killed, once nobody has answered for a minute.

    Ray waits for a head node that hangs, without a limit and in C++, where no signal's handler
    runs. The runs notice that we are gone, save and exit.
    """
    over = threading.Event()

    def watch() -> None:
        heard, warned = time.monotonic(), False
        while not over.wait(LOOK_SECONDS):
            with contextlib.suppress(Silent):
                if answers(address):
                    heard, warned = time.monotonic(), False
                    continue
            silent = time.monotonic() - heard
            if silent > SILENT_SECONDS:
                _say(f"the Ray cluster at {address} is gone: the same command resumes the runs")
                _end()
            if silent > SILENT_SECONDS / 4 and not warned:
                warned = True
                _say(f"the Ray cluster at {address} does not answer")

    threading.Thread(target=watch, daemon=True, name="ray").start()
    try:
        yield
    finally:
        over.set()


def _end() -> None:
    os._exit(LOST)


def _say(line: str) -> None:
    """Write a line to stderr, below a progress bar, which has hidden the cursor."""
    shown = "\n\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{shown}{line}", file=sys.stderr, flush=True)


def share(settings: RaySettings) -> dict[str, float]:
    """What Ray may use of this machine, where we start it."""
    return {
        "CPU": cores() if settings.cpus is None else settings.cpus,
        "GPU": len(gpus()) if settings.gpus is None else settings.gpus,
    }


def _init(**options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            log_to_driver=False, configure_logging=True, logging_level=logging.CRITICAL, **options
        )
