"""Ray itself: started here for one launch, or joined where it runs already."""

import contextlib
import logging
import os
import socket
import tempfile
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
REFUSED = (
    "what answers there does not let us in; if it asks for a token, set RAY_AUTH_TOKEN, or copy "
    "the ~/.ray/auth_token of the machine that started it"
)


@contextlib.contextmanager
def connected(settings: RaySettings) -> Iterator[None]:
    """Connected to the cluster at ``settings.address``, or to one of our own that ends with us."""
    if ray.is_initialized():  # by a host program
        yield
        return
    with temporary_folder("ray-") as folder:
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
        if not answers(address):
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
    """Whether something listens at ``HOST:PORT`` (else a ValueError); known within seconds."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not of the form HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def lost() -> bool:
    """Whether the cluster that we are connected to is gone, or its raylet on this machine."""
    us = ray.get_runtime_context()
    here = us.get_node_id()
    return not answers(us.gcs_address) or not any(
        node["Alive"] and node["NodeID"] == here for node in ray.nodes()
    )


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
