"""The local launcher: processes on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import check_range
from fewstep.sweeps.definition.launchers import LAUNCHERS
from fewstep.sweeps.launcher import LaunchRequest, OnEvent, Outcome


@LAUNCHERS.register("local")
@dataclass(frozen=True)
class LocalLauncher:
    """Runs in processes on this machine, which share its cores and GPUs.

    Attributes:
        workers: processes at a time; by default as many as fit.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_range("local.workers", self.workers, 1)

    def check(self, request: LaunchRequest) -> None:
        """Refuse runs whose device this machine does not have."""
        from fewstep.experiments.training.network import choose_device

        for device in {config["training"]["device"] for config in request.configs.values()}:
            choose_device(device)

    def preview(self, request: LaunchRequest) -> Sequence[str]:
        """Nothing: the plan itself says it all."""
        return ()

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        """Run all of them here. On Ctrl-C or SIGTERM they save and stop; a second signal kills."""
        from fewstep.sweeps.local.worker_pool import WorkerPool

        return WorkerPool(self.workers).launch(request.runs, on_event)
