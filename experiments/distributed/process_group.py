"""Several processes at work on one run: who they are, what they agree on, how one's end is heard.

torchrun and Ray tell each process its place in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT; srun in SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, which count where RANK is absent
and MASTER_ADDR is given. Without either a process is alone, and nothing here does anything.

The scheme (``batch_sharding.py``, ``data_parallel.py``): every process goes through the whole step,
on the whole batch and with the same random draws, but computes the network on its own rows only and
receives the others' outputs. So the loss is that of one process, and no objective knows.

Rank 0, the main process, is the only one that writes files. It broadcasts what it alone has read or
decided, through gloo on the CPU, whatever the device: gloo notices at once when a process is gone,
and does not make the GPU wait.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fewstep.errors import UserError

STEP_TIMEOUT = timedelta(minutes=10)  # for processes that should be doing the same
MAIN_TIMEOUT = timedelta(hours=12)  # for the first, at work on something alone: features, a file
PORT = 20_000  # the first of 20,000 that jobs without a MASTER_PORT are spread over

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
FAILURE = "fewstep/failure"  # where a process leaves its record

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of this run and this one's place: ``rank`` of ``size``, ``local`` on its node.

    All methods are collective: every process must come to them, in the same order.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: Any = None
    slow_group: Any = None  # the process group that waits for rank 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.size == 1

    def any_true(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if self.is_single:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def any_rank(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """``stop``, true for all as soon as it is for one: all stop at the same step."""
        return stop if self.is_single else lambda: self.any_true(stop())

    def broadcast(self, value: T) -> T:
        """The first process' ``value``; the others wait for it, for hours if they must."""
        if self.is_single:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.slow_group)
        return box[0]

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Fill a tensor on the CPU with the first process'."""
        if not self.is_single:
            dist.broadcast(tensor, src=0, group=self.slow_group)

    def all_gather(self, value: T) -> list[T]:
        """Every process' ``value``, by rank."""
        if self.is_single:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def failure(self, record: dict[str, Any], error: Exception) -> dict[str, Any]:
        """The failure record that counts: another process' own where ``error`` only followed it.

        Not collective: the others may be gone.
        """
        if self.is_single or self.store is None:
            return record
        if not self.is_main and not is_loss(error):
            with contextlib.suppress(RuntimeError):  # the store may be gone with the first
                self.store.set(FAILURE, json.dumps({**record, "rank": self.rank}))
        if not self.is_main or not is_loss(error):
            return record
        deadline = time.monotonic() + 2  # what it says may come later than that it is gone
        while time.monotonic() < deadline:
            if self.store.check([FAILURE]):
                reported: dict[str, Any] = json.loads(self.store.get(FAILURE))
                return reported
            time.sleep(0.05)
        message = f"another of the {self.size} processes of this run is gone, and did not say why"
        return {**record, "message": message}


def is_loss(error: BaseException | None) -> bool:
    """Whether ``error``, or what led to it, says that another process does not answer.

    torch has no type of its own for it: gloo's are RuntimeErrors that name its source files.
    """
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        text = str(error)
        if isinstance(error, RuntimeError) and ("gloo/" in text or "NCCL" in text):
            return True
        error = error.__cause__
    return False


SINGLE = Ranks()
_ranks = SINGLE


def ranks() -> Ranks:
    """Of this process; alone until it has joined."""
    return _ranks


def rendezvous_variables(environment: Mapping[str, str]) -> dict[str, str] | None:
    """torch's variables, from torchrun, Ray or SLURM; None for one process; or ``UserError``."""
    variables = {name: environment[name] for name in VARIABLES if name in environment}
    slurm = int(environment.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" in environment
    if slurm and variables.keys().isdisjoint(("RANK", "WORLD_SIZE")):
        variables |= {name: environment[source] for name, source in SLURM.items()}
    if variables.keys().isdisjoint(("RANK", "WORLD_SIZE")) or variables.get("WORLD_SIZE") == "1":
        return None
    port = PORT + int(environment.get("SLURM_JOB_ID", "0")) % PORT
    variables = {"LOCAL_RANK": "0", "MASTER_PORT": str(port) if slurm else ""} | variables
    if lacking := [name for name in VARIABLES if not variables.get(name)]:
        raise UserError(
            f"{', '.join(lacking)} is not set: a process of several needs RANK, WORLD_SIZE, "
            f"LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun sets them)"
        )
    numbers = {k: v for k, v in variables.items() if k != "MASTER_ADDR"}
    if wrong := {k: v for k, v in numbers.items() if not v.isdecimal()}:
        raise UserError(f"expected whole numbers, got {wrong}")
    if int(variables["RANK"]) >= int(variables["WORLD_SIZE"]):
        raise UserError("RANK {RANK} must be below WORLD_SIZE {WORLD_SIZE}".format_map(variables))
    return variables


def init_process_group() -> Ranks:
    """Meet the other processes of this run, as the environment tells; alone if it tells of none.

    A process group that is there already (Ray Train's) is taken as it is. Raises ``UserError``
    where variables do not fit, or others never came.
    """
    global _ranks
    variables = None if dist.is_initialized() else rendezvous_variables(os.environ)
    if variables is None and not dist.is_initialized():
        return _ranks
    store = None
    if variables is not None:
        os.environ.update(variables)
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(variables["LOCAL_RANK"]) % torch.cuda.device_count())
        try:
            store, rank, size = next(rendezvous("env://", timeout=STEP_TIMEOUT))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                store=store, rank=rank, world_size=size, timeout=STEP_TIMEOUT,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            who = "rank {RANK} of {WORLD_SIZE}".format_map(variables)
            where = "{MASTER_ADDR}:{MASTER_PORT}".format_map(variables)
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{who} did not meet the others at {where}: {reason}") from None
    own = dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    _ranks = Ranks(*own, store, dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT))
    return _ranks


def destroy_process_group() -> None:
    """Part from the others, at a common end."""
    global _ranks
    if not _ranks.is_single:
        _ranks = SINGLE
        dist.destroy_process_group()


def abort(status: int) -> None:
    """End this process without a word to the others, some of whom may be dead; stay if alone.

    At once: the interpreter's own end waits for threads that wait for the dead, or aborts.
    """
    if not _ranks.is_single:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
