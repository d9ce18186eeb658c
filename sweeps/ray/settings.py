"""The ``ray:`` field of a sweep, or ``ray.KEY=VALUE`` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError, check_choice, check_range
from fewstep.sweeps.settings import parse

SCHEDULERS = ("none", "asha")
SEARCHES = ("none", "optuna")
MOST_STEPS = 10**8


@dataclass(frozen=True)
class RaySettings:
    """How runs become trials.

    Attributes:
        address: of an existing cluster (``auto``: the one on this machine); by default Ray is
            started here and stopped in the end.
        cpus, gpus: of this machine, where Ray is started here; by default all this process may use.
        max_parallel: runs at a time; by default as many as their resources allow.
        max_failures: how often a run is tried again at most; by default as its failures' classes
            say, which also say what is never tried again.
        metric_steps: sampling steps of the cell (EMA weights, no guidance) whose distance is the
            score of early stopping and search; the smaller the better.
        scheduler: none | asha, which ends runs early that are not among the best 1/eta at a rung.
        rungs: training steps at which runs are compared; instead, ``grace``: the first of them, the
            others are eta times the one before. eta: of as many runs one goes on.
        search: none | optuna, which proposes settings from the sweep's axes.
        trials: settings to propose, on top of the sweep's own. batch: proposed at once, knowing all
            scores of the batches before, whatever the machine: so a search is the same wherever and
            however often it is started. seed: of the proposals.
        object_store_mb: memory for Ray's object store, where Ray is started here; runs need none.
        temp_dir: where Ray keeps its sockets and logs; by default a short-lived one in /tmp.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    max_parallel: int | None = None
    max_failures: int | None = None
    metric_steps: int = 1
    scheduler: str = "none"
    rungs: tuple[int, ...] = ()
    grace: int | None = None
    eta: float = 3.0
    search: str = "none"
    trials: int = 20
    batch: int = 4
    seed: int = 0
    object_store_mb: int = 80
    temp_dir: str | None = None

    def __post_init__(self) -> None:
        check_choice("ray.scheduler", self.scheduler, SCHEDULERS)
        check_choice("ray.search", self.search, SEARCHES)
        for name in ("cpus", "gpus", "max_failures", "seed"):
            if getattr(self, name) is not None:
                check_range(f"ray.{name}", getattr(self, name), 0)
        for name in ("max_parallel", "metric_steps", "grace", "trials", "batch"):
            if getattr(self, name) is not None:
                check_range(f"ray.{name}", getattr(self, name), 1)
        check_range("ray.object_store_mb", self.object_store_mb, 76)  # Ray refuses less
        check_range("ray.eta", self.eta, 1, open_low=True)
        for step in self.rungs:
            check_range("ray.rungs", step, 1)
        if list(self.rungs) != sorted(set(self.rungs)):
            raise UserError(f"ray.rungs must be rising training steps, got {list(self.rungs)}")
        if self.rungs and self.grace is not None:
            raise UserError("ray.rungs and ray.grace both say where the rungs are; give one")
        if self.scheduler == "asha" and not self.rungs and self.grace is None:
            raise UserError("ray.scheduler asha needs ray.rungs=[500,1000] or ray.grace=500")
        if self.address is not None and "://" in self.address:
            raise UserError(
                f"ray.address {self.address!r}: Ray's client cannot hold a sweep; give HOST:PORT, "
                f"or 'auto' on a machine of the cluster"
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RaySettings:
        """From a sweep's ``ray:`` field.

        Raises:
            UserError: an unknown setting, or a value of the wrong kind.
        """
        return parse(cls, "ray", values)

    def rung_steps(self) -> tuple[int, ...]:
        """The rungs, also those beyond the last step of a run; none without early stopping."""
        if self.scheduler == "none" or self.grace is None:
            return self.rungs if self.scheduler != "none" else ()
        found, rung = [self.grace], float(self.grace)
        while rung * self.eta < MOST_STEPS:
            rung = max(rung * self.eta, found[-1] + 1)
            found.append(round(rung))
        return tuple(found)
