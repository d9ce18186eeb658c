"""The processes of one run, on one machine or several: a data-parallel run as one trial has it.

A trial of several processes has a bundle of resources on each of its machines. An actor in each of
them keeps a fork server per process, whose child is told its place as torchrun tells it. They meet
as they do anywhere (``experiments/distributed.py``); here they are only started, and their ends are
heard. The actors are of one run: with them go the servers, whose children save and leave.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fewstep.experiments import worker
from fewstep.experiments.claim import JOB
from fewstep.sweeps.fork import Fork
from fewstep.sweeps.forkserver import Order

Bundle = dict[str, float]
"""What is asked of one machine, in Ray's words: CPU, GPU, memory (bytes)."""

COME_SECONDS = 120.0  # for actors whose resources are reserved
LATE = "a machine of the run did not come within"
FOLLOW_SECONDS = 120.0  # for the others, once one has failed: some wait where no signal is heard


class Lost(Exception):
    """A machine of the run is gone; the message is Ray's."""


def fork(threads: int) -> Fork:
    """A fork server whose runs' claims name this machine."""
    job = json.dumps({"launcher": "ray", "node": os.uname().nodename})
    return Fork(threads, {JOB: job})


class Machine:
    """The processes of one machine (a Ray actor). Each method is called in a thread of its own."""

    def __init__(self, processes: int, threads: int) -> None:
        self.forks = [fork(threads) for _ in range(processes)]

    def address(self) -> tuple[str, int]:
        """Where the first process may wait for the others."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def work(self, local: int, order: Order) -> int:
        """The exit code of a process, when it has ended."""
        fork = self.forks[local]
        fork.start(order)
        while "code" not in (said := fork.next(1) or {}):
            pass
        return int(said["code"])

    def signal(self, number: int) -> None:
        """Send a signal to those that are at work, or coming to it."""
        for fork in self.forks:
            fork.stop(number)


class Team:
    """What ``Fork`` is to a run of one process, for one of several; no rungs.

    ``machines``: what each of them gives.
    """

    def __init__(self, machines: Sequence[Bundle]) -> None:
        self.bundles = machines
        self.each = processes(machines[0])
        self._clear()

    def _clear(self) -> None:
        self.machines: list[Any] = []
        self.at_work: dict[Any, int] = {}  # ranks, by what their end will be heard from
        self.codes: dict[int, int] = {}  # by rank, in the order of their ends
        self.lost: RayActorError | None = None
        self.failed: float | None = None  # when the first did

    def start(self, order: Order) -> None:
        """Have the processes of a run started.

        Raises:
            Lost: a machine did not come.
        """
        self.machines = [self._machine(index) for index in range(len(self.bundles))]
        try:
            found = ray.get([m.address.remote() for m in self.machines], timeout=COME_SECONDS)
        except RayActorError as error:
            raise Lost(str(error)) from None
        except GetTimeoutError:
            raise Lost(f"{LATE} {COME_SECONDS:g} s") from None
        host, port = found[0]
        size = self.each * len(self.machines)
        for rank in range(size):
            place = {
                "RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_RANK": rank % self.each,
                "LOCAL_WORLD_SIZE": self.each,
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
            }
            told = {name: str(value) for name, value in place.items()}
            its: Order = {**order, "environment": {**order["environment"], **told}}
            machine = self.machines[rank // self.each]
            self.at_work[machine.work.remote(rank % self.each, its)] = rank

    def next(self, seconds: float) -> dict[str, Any] | None:
        """``{"code"}`` once all have ended; None where they have not for ``seconds``.

        Raises:
            Lost: a machine was, and all others have ended.
        """
        ready, _ = ray.wait(list(self.at_work), timeout=seconds)
        for end in ready:
            self._ended(self.at_work.pop(end), end)
        if self.failed and time.monotonic() - self.failed > FOLLOW_SECONDS:
            self._signal(signal.SIGKILL)
        if self.at_work:
            return None
        codes, lost = self.codes, self.lost
        self.close()
        return {"code": verdict(codes, lost)}

    def stop(self) -> None:
        """Have the processes save and leave."""
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Let the machines go; processes that are still there save and leave."""
        for machine in self.machines:
            ray.kill(machine)
        self._clear()

    def _machine(self, index: int) -> Any:
        bundle = dict(self.bundles[index])
        options = {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "memory": bundle.pop("memory", None),
            "max_concurrency": self.each + 2,  # each process' end, and a signal
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                get_current_placement_group(), placement_group_bundle_index=index
            ),
        }
        return (
            ray.remote(Machine).options(**options).remote(self.each, threads(self.bundles[index]))
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
                self.stop()  # if it was asked before they had met, they do not know
            if code in (worker.DONE, worker.INTERRUPTED, worker.BUSY):
                return  # in which all are agreed, though the first may have files to write yet
        self.failed = self.failed or time.monotonic()

    def _signal(self, number: int) -> None:
        for index in {rank // self.each for rank in self.at_work.values()}:
            self.machines[index].signal.remote(number)


def verdict(codes: dict[int, int], lost: Exception | None) -> int:
    """The exit code that counts, of those by rank in the order of their ends.

    It is the first process', which writes, where that has something to say. When it has failed,
    another may be the cause, and one that was killed could not tell it.

    Raises:
        Lost: the cause is a machine that was lost.
    """
    first = codes.get(0, worker.FAILED)
    if first in (worker.DONE, worker.BUSY, worker.SUPERSEDED, worker.BAD_INPUT):
        return first
    if lost is not None:
        raise Lost(str(lost))
    if first == worker.INTERRUPTED:
        return first
    bad = [code for code in codes.values() if code != worker.DONE]
    return next((code for code in bad if code < 0), bad[0])


def processes(bundle: Bundle) -> int:
    """Of a run, on a machine that gives this: one per GPU, one at least."""
    return max(1, int(bundle.get("GPU", 0)))


def threads(bundle: Bundle) -> int:
    """Of each process: its share of the machine's cores, whole."""
    return max(1, int(bundle.get("CPU", 1)) // processes(bundle))
