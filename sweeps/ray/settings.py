"""The ``ray:`` field of a sweep, or ``ray.KEY=VALUE`` on the command line."""

from dataclasses import dataclass

from fewstep.errors import UserError, check_choice, check_fields, check_range

SCHEDULERS = ("none", "asha")
SEARCHES = ("none", "optuna")
MOST_STEPS = 10**8


@dataclass(frozen=True)
class RaySettings:
    """The settings of the Ray launcher: how runs become trials (docs/ray.md has a table).

    Attributes:
        address: of an existing cluster; by default Ray is started here and stopped in the end.
        cpus, gpus, object_store_mb, temp_dir: of this machine, where Ray is started here.
        max_failures: how often a run is tried again at most; None: as its failures' classes say.
        metric_steps: sampling steps of the cell (EMA weights, no guidance) whose distance is the
            score of early stopping and search; the smaller the better.
        rungs: training steps at which runs are compared; instead, ``grace``: the first of them, the
            others are eta times the one before. eta: of as many runs one goes on.
        trials: settings to propose, on top of the sweep's own. batch: proposed at once, knowing all
            scores of the batches before, whatever the machine.
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
        check_fields("ray", self, "cpus gpus max_failures seed", 0)
        check_fields("ray", self, "max_parallel metric_steps grace trials batch", 1)
        check_range("ray.object_store_mb", self.object_store_mb, 76)  # Ray refuses less
        check_range("ray.eta", self.eta, 1, open_low=True)
        for step in self.rungs:
            check_range("ray.rungs", step, 1)
        if list(self.rungs) != sorted(set(self.rungs)):
            raise UserError(f"ray.rungs must be rising training steps, got {list(self.rungs)}")
        if self.rungs and self.grace is not None:
            raise UserError("ray.rungs and ray.grace both define the rungs; set one of them")
        if self.scheduler == "asha" and not self.rungs and self.grace is None:
            raise UserError("ray.scheduler asha needs ray.rungs=[500,1000] or ray.grace=500")
        if self.address is not None and "://" in self.address:
            raise UserError(
                f"ray.address {self.address!r}: Ray's client cannot launch a sweep; use HOST:PORT, "
                f"or 'auto' on a machine of the cluster"
            )

    def rung_steps(self) -> tuple[int, ...]:
        """The rungs, also those beyond the last step of a run; none without early stopping."""
        if self.scheduler == "none" or self.grace is None:
            return self.rungs if self.scheduler != "none" else ()
        rungs, rung = [self.grace], float(self.grace)
        while rung * self.eta < MOST_STEPS:
            rung = max(rung * self.eta, rungs[-1] + 1)
            rungs.append(round(rung))
        return tuple(rungs)
