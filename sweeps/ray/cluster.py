"""Ray itself: started here for one launch, or joined where it runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import ray

from fewstep.errors import UserError
from fewstep.sweeps.local import cores, gpus
from fewstep.sweeps.ray.settings import RaySettings


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
    devices = len(gpus()) if settings.gpus is None else settings.gpus
    try:
        _init(
            num_cpus=cores() if settings.cpus is None else settings.cpus,
            num_gpus=devices,
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
    try:
        _init(address=address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"no Ray cluster at ray.address {address!r}: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()  # of the connection; the cluster is left running


def _init(**options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            log_to_driver=False, configure_logging=True, logging_level=logging.CRITICAL, **options
        )


def nodes() -> list[dict[str, float]]:
    """What each machine of the cluster has: CPU, GPU, memory, ..."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
