"""Ray itself: started here for one launch, or joined where it runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import services

from fewstep.errors import UserError
from fewstep.sweeps.local import gpus
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.threads import cores

ANSWER_SECONDS = 5.0


@contextlib.contextmanager
def connected(settings: RaySettings) -> Iterator[None]:
    """Connected to the cluster at ``settings.address``, or to one of our own that ends with us.

    Raises:
        UserError: there is no cluster at the address.
    """
    if ray.is_initialized():  # by whoever uses us as a library
        yield
        return
    if settings.address is not None:
        with _joined(settings.address):
            yield
        return
    # Ray's default follows TMPDIR, and its sockets' names may have 107 bytes
    folder = settings.temp_dir or tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ours = share(settings)
    try:
        _init(
            num_cpus=ours["CPU"],
            num_gpus=ours["GPU"],
            include_dashboard=False,
            object_store_memory=settings.object_store_mb * 2**20,
            _temp_dir=os.path.abspath(folder),
        )
        yield
    finally:
        ray.shutdown()
        if settings.temp_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    place = found(address)
    with _refusing(address):
        _init(address=place)
    print(f"joined the Ray cluster at {place}", flush=True)
    try:
        yield
    finally:
        ray.shutdown()  # of the connection; the cluster is left running


def found(address: str) -> str:
    """The ``HOST:PORT`` of the cluster at ``address``, where somebody answers.

    Raises:
        UserError: nobody does: Ray would wait for minutes, deaf to signals.
    """
    with _refusing(address):
        place = services.canonicalize_bootstrap_address(address) if address == "auto" else address
        if not answers(place):
            raise ConnectionError(f"nobody answers at {place}")
        return str(place)


@contextlib.contextmanager
def _refusing(address: str) -> Iterator[None]:
    """What Ray and the network say of an address, in our words."""
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"no Ray cluster at ray.address {address!r}: {reason}") from None


def answers(address: str) -> bool:
    """Whether somebody listens at ``HOST:PORT``; known within seconds.

    Raises:
        ValueError: it is no such address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not of the form HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def lost() -> bool:
    """Whether the cluster that we are connected to is gone."""
    return not answers(ray.get_runtime_context().gcs_address)


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


def nodes() -> list[dict[str, float]]:
    """What each machine of the cluster has: CPU, GPU, memory, ..."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
