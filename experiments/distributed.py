"""Several processes at work on one run: who they are, what they agree on, how one's end is heard.

torchrun and Ray tell each process its place in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT; srun in SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, which count where RANK is absent
and MASTER_ADDR is given. Without either a process is alone, and nothing here does anything.

The scheme, which ``sharded.py`` and ``parallel.py`` carry out: every process goes through the
whole step of one process, on the whole global batch and with the same random draws, but computes
the network on its own rows only, and is handed the others' outputs. So the loss, whatever an
objective does with the rows of a batch, is the loss of one process, and no objective knows.

Process 0, the first, is the only one that writes files. What it alone has read or decided is
``told`` to the others. Talk of this kind goes through gloo on the CPU, whatever the device: it
notices at once when a process is gone, and it does not make the GPU wait.
"""

from __future__ import annotations

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

STEP_PATIENCE = timedelta(minutes=10)  # for processes that should be doing the same
PATIENCE = timedelta(hours=12)  # for the first, at work on something alone: features, a file
PORT = 20_000  # the first of 20,000 that jobs without a MASTER_PORT are spread over

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
    patient: Any = None  # the process group that waits for the first one

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if self.alone:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def agreed(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """``stop``, true for all as soon as it is for one: all stop at the same step."""
        return stop if self.alone else lambda: self.any(stop())

    def told(self, value: T) -> T:
        """The first process' ``value``; the others wait for it, for hours if they must."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def told_tensor(self, tensor: Tensor) -> None:
        """Fill a tensor on the CPU with the first process'."""
        if not self.alone:
            dist.broadcast(tensor, src=0, group=self.patient)

    def each(self, value: T) -> list[T]:
        """Every process' ``value``, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    # ---- ends ----------------------------------------------------------------------------------

    def failure(self, record: dict[str, Any], error: Exception) -> dict[str, Any]:
        """The failure record that counts: another process' own where ``error`` only followed it.

        Not collective: the others may be gone.
        """
        if self.alone or self.store is None:
            return record
        if not self.first:
            if not is_loss(error):
                with contextlib.suppress(RuntimeError):  # the store may be gone with the first
                    self.store.set(FAILURE, json.dumps({**record, "rank": self.rank}))
            return record
        if not is_loss(error):
            return record
        deadline = time.monotonic() + 2  # what it says may come later than that it is gone
        while time.monotonic() < deadline:
            if self.store.check([FAILURE]):
                told: dict[str, Any] = json.loads(self.store.get(FAILURE))
                return told
            time.sleep(0.05)
        said = f"another of the {self.size} processes of this run is gone, and did not say why"
        return {**record, "message": said}


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


ALONE = Ranks()
_ranks = ALONE


def ranks() -> Ranks:
    """Of this process; alone until it has joined."""
    return _ranks


def place(environment: Mapping[str, str]) -> dict[str, str] | None:
    """torch's variables for this process, from torchrun's, Ray's or SLURM's; None if it is alone.

    Raises:
        UserError: variables that do not fit, or no address to meet at.
    """
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
    slurm = int(environment.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" in environment
    if found:
        found["LOCAL_RANK"] = environment.get("LOCAL_RANK", "0")
    elif slurm:
        found = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_NTASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
        }
    if not found or found.get("WORLD_SIZE") == "1":
        return None
    job = int(environment.get("SLURM_JOB_ID", "0"))
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR", "")
    found["MASTER_PORT"] = environment.get("MASTER_PORT", str(PORT + job % PORT) if slurm else "")
    lacking = [name for name in ("RANK", "WORLD_SIZE") if name not in found]
    lacking += [name for name, value in found.items() if not value]
    if lacking:
        raise UserError(
            f"{', '.join(lacking)} is not set: a process of several needs RANK, WORLD_SIZE, "
            f"LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun sets them)"
        )
    numbers = {k: found[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    if wrong := {k: v for k, v in numbers.items() if not v.isdecimal()}:
        raise UserError(f"expected whole numbers, got {wrong}")
    if int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        raise UserError(f"RANK {found['RANK']} must be below WORLD_SIZE {found['WORLD_SIZE']}")
    return found


def join() -> Ranks:
    """Meet the other processes of this run, as the environment tells; alone if it tells of none.

    A process group that is there already (Ray Train's) is taken as it is.

    Raises:
        UserError: variables that do not fit, or others that never came.
    """
    global _ranks
    found = None if dist.is_initialized() else place(os.environ)
    if found is None and not dist.is_initialized():
        return _ranks
    store = None
    if found is not None:
        os.environ.update(found)
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(found["LOCAL_RANK"]) % torch.cuda.device_count())
        try:
            store, rank, size = next(rendezvous("env://", timeout=STEP_PATIENCE))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                store=store, rank=rank, world_size=size, timeout=STEP_PATIENCE,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"process {found['RANK']} of {found['WORLD_SIZE']} did not meet the others at "
                f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}: {reason}"
            ) from None
    _ranks = Ranks(
        dist.get_rank(),
        dist.get_world_size(),
        int(os.environ.get("LOCAL_RANK", "0")),
        store,
        dist.new_group(backend="gloo", timeout=PATIENCE),
    )
    return _ranks


def leave() -> None:
    """Part from the others, at a common end."""
    global _ranks
    if not _ranks.alone:
        _ranks = ALONE
        dist.destroy_process_group()


def abandon(status: int) -> None:
    """End this process without a word to the others, some of whom may be dead; stay if alone.

    At once: the interpreter's own end waits for threads that wait for the dead, or aborts.
    """
    if not _ranks.alone:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
