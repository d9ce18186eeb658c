"""A run's network: where it is computed, how it is built, and how it is filled from checkpoints."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.errors import UserError
from fewstep.experiments import checkpoint
from fewstep.experiments.checkpoint import Checkpoint
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.distributed import ranks
from fewstep.experiments.seeds import derive


def choose_device(name: str) -> torch.device:
    """``auto`` takes cuda, then mps, then cpu; another name is checked to be there.

    Of several processes on a node, each takes a GPU of its own, and none takes mps.
    """
    everyone = ranks()
    if not everyone.alone and name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", everyone.local % torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.backends.mps.is_available() and everyone.alone
        return torch.device("mps" if mps else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"training.device {name!r} cannot be used here: {reason}") from None


def build_network(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The backbone as this run's objective asks it, with weights drawn from the run's seed."""
    torch.manual_seed(derive(config.seed, "init"))
    return config.backbone.build(dataset.shape, dataset.num_classes, config.objective.uses_jump)


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks and tensors that are built inside have shapes alone: no memory, no numbers."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Nothing is drawn for tensors that have shapes alone.

    On the meta device ``normal_`` is one of torch's functions in Python, the first call of any of
    which imports its compiler: 1.5 s, in every command.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def frozen(network: nn.Module) -> nn.Module:
    """A copy that takes no gradients."""
    copied = copy.deepcopy(network).requires_grad_(False).eval()
    copied.checkpointing = False  # type: ignore[assignment]
    return copied


def check_checkpointing(network: nn.Module, config: RunConfig) -> None:
    """Refuse to checkpoint activations in a network that cannot."""
    if not hasattr(network, "checkpointing"):
        name = config.values["backbone"]["name"]
        raise UserError(
            f"training.activation_checkpointing: backbone {name!r} has no ``checkpointing``"
        )


def load_weights(
    module: nn.Module,
    found: Checkpoint,
    prefix: str,
    place: Callable[[Tensor, Tensor], Tensor] = lambda whole, like: whole,
) -> None:
    """Fill ``module`` from the tensors of a checkpoint whose names begin with ``prefix``.

    ``place(whole, like)`` gives a tensor the form of the module's own.
    """
    start, own = f"{prefix}.", module.state_dict()
    weights = {k.removeprefix(start): v for k, v in found.tensors.items() if k.startswith(start)}
    module.load_state_dict({k: place(v, own[k]) if k in own else v for k, v in weights.items()})


def load_network(
    config: RunConfig, dataset: Dataset, folder: Path, weights: str, step: int | None = None
) -> nn.Module:
    """The newest network of a run, ``ema`` or ``raw``, in eval mode on the CPU.

    Raises:
        UserError: the run has no whole checkpoint yet, or its newest is not of ``step``.
    """
    found = checkpoint.load_latest(folder)
    if found is None:
        raise UserError(f"no checkpoint in {folder}: train the run first")
    if step not in (None, found.step):
        raise UserError(
            f"the newest whole checkpoint in {folder} is of step {found.step}, expected {step}: "
            f"remove the run's result.json, and it is trained from there again"
        )
    network = build_network(config, dataset)
    load_weights(network, found, "ema" if weights == "ema" else "net")
    return network.requires_grad_(False).eval()


def device_name(device: torch.device) -> str:
    """What a person would call it: the GPU's model, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
