"""``python -m helpers.killed MOMENT N SIGNAL MODULE ARGUMENTS...``: a module that signals itself.

At the N-th time it comes to the moment, so that no test of a kill depends on timing. Moments:
``update`` (gradients are there, no weight has moved), ``checkpoint`` (half of its tensors are
written), ``log`` (before a line is written), ``rename`` (of any file), ``transaction`` of MLflow's
database.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def counted(n: int, act: Callable[[], None]) -> Callable[[], None]:
    """Do ``act`` at the ``n``-th call."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == n:
            act()

    return count


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """From now on ``owner.name`` does ``act`` first, with the same arguments."""
    function = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        act(*arguments)
        return function(*arguments, **named)

    setattr(owner, name, wrapped)


def at_file_operation(n: int, act: Callable[[], None], *events: str) -> None:
    """Do ``act`` before the ``n``-th of these audit events of Python; there is no way back."""
    count = counted(n, act)
    sys.addaudithook(lambda event, _: count() if event in events else None)


def arm(moment: str, n: int, act: Callable[[], None]) -> None:
    """Have this process do ``act`` when it comes to the moment."""
    count = counted(n, act)
    if moment == "update":
        from fewstep.experiments.training.optimiser import Updater

        before(Updater, "step", lambda *_: count())
    elif moment == "checkpoint":
        from fewstep.experiments.training import checkpoint

        def half(tensors: Any, file: Path) -> None:
            file.write_bytes(b"half")
            count()

        before(checkpoint, "save_file", half)
    elif moment == "log":
        from fewstep.experiments.training.trainer import Trainer

        before(Trainer, "_log", lambda *_: count())
    elif moment == "transaction":
        from fewstep.experiments.tracking import sweep_sync

        before(sweep_sync, "one_transaction", lambda *_: count())
    else:
        assert moment == "rename", moment
        at_file_operation(n, act, "os.rename")


if __name__ == "__main__":
    moment, n, name, module, *arguments = sys.argv[1:]
    arm(moment, int(n), lambda: os.kill(os.getpid(), getattr(signal, name)))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
