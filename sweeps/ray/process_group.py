"""The processes of one data-parallel run, on one machine or several, as one trial of Ray.

A trial of several processes has a bundle of resources on each of its machines. An actor in each
bundle keeps a fork server, each of whose children gets its rank in the variables of torchrun. The
processes connect as always (``experiments/distributed``); here they are only started, and their
exit codes are collected. The actors belong to one run: when they end, the servers end, and their
children save and stop.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fewstep.experiments import worker
from fewstep.experiments.store.lease import JOB
from fewstep.sweeps.local.fork_client import Child, ForkServerClient
from fewstep.sweeps.local.fork_server import Order

Bundle = dict[str, float]
"""What a run gets on one machine, by Ray's names: CPU, GPU, memory (bytes)."""

START_SECONDS = 120.0  # for actors whose resources are reserved
LATE = "a machine of the run was not available within"
FOLLOW_SECONDS = 120.0  # for the others, once one has failed: some wait where signals are ignored


class MachineLost(Exception):
    """A machine of the run is gone; the message is Ray's."""


def fork_server(threads: int) -> ForkServerClient:
    """A fork server whose runs' leases name this machine."""
    job = json.dumps({"launcher": "ray", "node": os.uname().nodename})
    return ForkServerClient(threads, {JOB: job})


class Machine:
    """The processes of one machine (a Ray actor). Each method is called in a thread of its own."""

    def __init__(self, threads: int) -> None:
        self.server = fork_server(threads)
        self.children: list[Child] = []
        self.pending_signal: int | None = None  # for those that have not begun

    def address(self) -> tuple[str, int]:
        """Where the first process may wait for the others."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def work(self, order: Order) -> int:
        """Run a process to its end; its exit code."""
        self.children.append(child := self.server.start(order))
        if self.pending_signal is not None:
            child.stop(self.pending_signal)
        while "code" not in (message := child.next(1) or {}):
            pass
        return int(message["code"])

    def signal(self, number: int) -> None:
        """Send a signal to the processes that run or are starting."""
        self.pending_signal = number
        for child in self.children:
            child.stop(number)


class RayProcessGroup:
    """Like a fork server and its child, for a run of several processes on ``bundles``; no rungs."""

    def __init__(self, bundles: Sequence[Bundle], most_threads: int | None = None) -> None:
        self.bundles, self.most_threads = bundles, most_threads
        self.each = processes(bundles[0])
        self._clear()

    def _clear(self) -> None:
        self.machines: list[Any] = []
        self.running: dict[Any, int] = {}  # ranks, by the reference to their exit code
        self.codes: dict[int, int] = {}  # by rank, in the order in which they ended
        self.lost: RayActorError | None = None
        self.failed: float | None = None  # when the first process failed

    def start(self, order: Order) -> Self:
        """Start the processes of a run; ``MachineLost`` if a machine was not available in time."""
        self.machines = [self._machine(index) for index in range(len(self.bundles))]
        try:
            addresses = ray.get([m.address.remote() for m in self.machines], timeout=START_SECONDS)
        except RayActorError as error:
            raise MachineLost(str(error)) from None
        except GetTimeoutError:
            raise MachineLost(f"{LATE} {START_SECONDS:g} s") from None
        host, port = addresses[0]
        size = self.each * len(self.machines)
        for rank in range(size):
            variables = {
                "RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_RANK": rank % self.each,
                "LOCAL_WORLD_SIZE": self.each,
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
            }
            environment = order["environment"] | {k: str(v) for k, v in variables.items()}
            its: Order = {**order, "environment": environment}
            machine = self.machines[rank // self.each]
            self.running[machine.work.remote(its)] = rank
        return self

    def next(self, seconds: float) -> dict[str, Any] | None:
        """``{"code"}`` once all have ended, else None; ``MachineLost`` if that is the reason."""
        ready, _ = ray.wait(list(self.running), timeout=seconds)
        for end in ready:
            self._ended(self.running.pop(end), end)
        if self.failed and time.monotonic() - self.failed > FOLLOW_SECONDS:
            self._signal(signal.SIGKILL)
        if self.running:
            return None
        codes, lost = self.codes, self.lost
        self.close()
        return {"code": verdict(codes, lost)}

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Release the machines; processes that still run save and stop."""
        for machine in self.machines:
            ray.kill(machine)
        self._clear()

    def _machine(self, index: int) -> Any:
        bundle = dict(self.bundles[index])
        options = {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "memory": bundle.pop("memory", None),
            "max_concurrency": self.each + 2,  # each process' exit code, and a signal
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                get_current_placement_group(), placement_group_bundle_index=index
            ),
        }
        return (
            ray.remote(Machine)
            .options(**options)
            .remote(threads(self.bundles[index], self.most_threads))
        )

    def _ended(self, rank: int, end: Any) -> None:
        try:
            code = ray.get(end)
        except RayActorError as error:
            self.lost = error
            self.stop()
        else:
            if self.failed is None or time.monotonic() - self.failed <= FOLLOW_SECONDS:
                self.codes[rank] = code  # of its own, and not by our SIGKILL
            if code == worker.INTERRUPTED:
                self.stop()  # others do not know if the signal came before they had connected
            if code in (worker.DONE, worker.INTERRUPTED, worker.BUSY):
                return  # all processes agree on these, though rank 0 may still be writing files
        self.failed = self.failed or time.monotonic()

    def _signal(self, number: int) -> None:
        for index in {rank // self.each for rank in self.running.values()}:
            self.machines[index].signal.remote(number)


def verdict(codes: dict[int, int], lost: Exception | None) -> int:
    """The exit code of the run, from ``codes`` by rank in the order in which they ended.

    It is that of rank 0, which writes the files, unless rank 0 failed: then another process may be
    the cause, and a killed process could not record it. ``MachineLost``, if that is the cause.
    """
    first = codes.get(0, worker.FAILED)
    if first in (worker.DONE, worker.BUSY, worker.SUPERSEDED, worker.BAD_INPUT):
        return first
    if lost is not None:
        raise MachineLost(str(lost))
    if first == worker.INTERRUPTED:
        return first
    bad = [code for code in codes.values() if code != worker.DONE]
    return next((code for code in bad if code < 0), bad[0])


def processes(bundle: Bundle) -> int:
    """Of a run, on a machine that gives this: one per GPU, one at least."""
    return max(1, int(bundle.get("GPU", 0)))


def threads(bundle: Bundle, most: int | None) -> int:
    """Of each process: its share of the machine's cores, whole, and no more than ``most``.

    Ray sets OMP_NUM_THREADS in its workers: the user's must come from the driver.
    """
    share = int(bundle.get("CPU", 1)) // processes(bundle)
    return max(1, share if most is None else min(share, most))
