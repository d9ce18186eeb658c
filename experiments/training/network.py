"""A run's network: where it is computed, how it is built, and how it is filled from checkpoints."""

import copy
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.backbones import build_backbone
from fewstep.backbones.embeddings import ConditionEmbedding
from fewstep.errors import UserError, unknown
from fewstep.experiments.config.averages import EMA, RAW, WIDTH
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.rng import derive
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training import augmentation, checkpoint
from fewstep.experiments.training.checkpoint import Checkpoint
from fewstep.experiments.training.initialisation import NetworkForm, converted, kept_form, own_form
from fewstep.experiments.training.posthoc_ema import reconstruct

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str, option: str = "training.device") -> torch.device:
    """``auto`` takes cuda, then mps, then cpu; another name, as ``cuda:1``, is checked to be there.

    ``option``: what it was given as. Of several processes on a node, each takes a GPU of its own.
    """
    kind = name.partition(":")[0]
    if not re.fullmatch(r"(auto|(cpu|cuda|mps)(:\d+)?)", name):
        raise unknown(option, name, DEVICES)
    everyone = ranks()
    if not everyone.is_single and name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", everyone.local % torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.backends.mps.is_available() and everyone.is_single
        return torch.device("mps" if mps else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):
        reason = f"PyTorch finds no such {kind} device"
        if kind == "cuda":
            reason = f"PyTorch finds {torch.cuda.device_count() or 'no'} CUDA devices"
        raise UserError(f"{option} {name!r} cannot be used here: {reason}") from None


def build_network(
    config: RunConfig, dataset: Dataset, form: NetworkForm | None = None
) -> nn.Module:
    """The backbone as this run's objective asks it, with weights drawn from the run's seed.

    ``form``: how it is called, where its first weights are those of another run.
    """
    form = form or own_form(config)
    torch.manual_seed(derive(config.seed, "init"))
    about = (dataset.shape, dataset.num_classes, form.takes_d, dataset.condition_dim)
    network = build_backbone(config.backbone, *about)
    if config.training.augment:
        add_augmentation(network, config.values["backbone"]["name"])
    return converted(network, config, form)


def add_augmentation(network: nn.Module, name: str) -> None:
    """Let backbone ``name`` know what was done to an image; ``UserError`` where it cannot."""
    embedding = next((m for m in network.modules() if isinstance(m, ConditionEmbedding)), None)
    if embedding is None:
        raise UserError(f"training.augment: backbone {name!r} has no ConditionEmbedding")
    embedding.add_augmentation(augmentation.LABELS)


def build_saved(config: RunConfig, dataset: Dataset, saved: Checkpoint) -> nn.Module:
    """The network whose weights are in a checkpoint of the run, not yet filled with them."""
    return build_network(config, dataset, kept_form(config, saved.state.get("initialised")))


@contextmanager
def uninitialised_weights() -> Iterator[None]:
    """Networks and tensors that are built inside have shapes alone: no memory, no numbers."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    # on the meta device, the first ``normal_`` imports torch's compiler: 1.5 s, in every command

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that takes no gradients."""
    copied = copy.deepcopy(network).requires_grad_(False).eval()
    copied.checkpointing = False  # type: ignore[assignment]
    return copied


def checkpoint_activations(config: RunConfig, network: nn.Module) -> None:
    """From now on ``network`` recomputes activations; ``UserError`` where it cannot."""
    if not hasattr(network, "checkpointing"):
        setting, name = "training.activation_checkpointing", config.values["backbone"]["name"]
        raise UserError(f"{setting}: backbone {name!r} has no ``checkpointing``")
    network.checkpointing = True  # type: ignore[assignment]


def load_weights(
    module: nn.Module,
    saved: Checkpoint,
    prefix: str,
    distribute: Callable[[Tensor, Tensor], Tensor] = lambda whole, like: whole,
) -> None:
    """Fill ``module`` from the tensors of a checkpoint whose names begin with ``prefix``.

    ``distribute(whole, like)`` gives a tensor the form of the module's own.
    """
    start, own = f"{prefix}.", module.state_dict()
    weights = {k.removeprefix(start): v for k, v in saved.tensors.items() if k.startswith(start)}
    module.load_state_dict({k: distribute(v, own.get(k, v)) for k, v in weights.items()})


def load_kept(directory: RunDirectory, step: int) -> Checkpoint:
    """The weights after ``step`` updates of a run; ``UserError`` where they were not kept."""
    saved = checkpoint.load_latest(directory.weights, step)
    if saved is None:
        raise UserError(
            f"run {directory.key} has kept no weights of step {step} in {directory.weights}"
        )
    return saved


def load_checkpoint(folder: Path, step: int | None = None) -> Checkpoint:
    """The newest whole checkpoint; ``UserError`` where there is none, or it is not of ``step``."""
    saved = checkpoint.load_latest(folder)
    if saved is None:
        raise UserError(f"no checkpoint in {folder}: train the run first")
    if step not in (None, saved.step):
        raise UserError(
            f"the newest whole checkpoint in {folder} is of step {saved.step}, expected {step}: "
            f"remove the run's result.json, and it is trained from there again"
        )
    return saved


def load_network(
    config: RunConfig,
    dataset: Dataset,
    directory: RunDirectory,
    weights: str,
    step: int | None = None,
    at: int | None = None,
) -> nn.Module:
    """The newest network of a run, in eval mode on the CPU; ``weights``: see config/averages.py.

    ``step``: of which it must be. ``at``: that of an earlier step, of ``evaluation.at_steps``.
    """
    saved = load_checkpoint(directory.checkpoints, step) if at is None else load_kept(directory, at)
    is_saved = any(name.startswith(f"{weights}.") for name in saved.tensors)
    if is_saved or not weights.startswith(WIDTH):
        return load_saved(config, dataset, saved, weights)
    network = load_saved(config, dataset, saved, EMA)  # and its buffers, which no average has
    width = float(weights.partition("-")[2])
    network.load_state_dict(reconstruct(directory.averages, width, saved.step), strict=False)
    return network


def load_saved(config: RunConfig, dataset: Dataset, saved: Checkpoint, weights: str) -> nn.Module:
    """As ``load_network``, of weights that are in a checkpoint."""
    network = build_saved(config, dataset, saved)
    load_weights(network, saved, "net" if weights == RAW else weights)
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


def check_guidance(config: RunConfig, dataset: Dataset, setting: str, needed: bool) -> None:
    """Raise ``UserError`` where ``setting`` asks for guidance that the network cannot give.

    Guidance asks for "no label", which a network knows only if some labels were dropped.
    """
    if needed and not dataset.has_conditions:
        raise UserError(f"{setting} needs labels, and {dataset.name} has none")
    if needed and not config.training.label_dropout:
        raise UserError(
            f"{setting} needs a network that was trained without labels too: "
            f"training.label_dropout is 0 (the usual choice: 0.1)"
        )
