"""Two training steps of a run's real network on random numbers of the right shape.

Before any GPU time is spent, they show that settings, network, objective and teacher fit together.
Where the network is too large for the memory, or for a CPU, it is run without numbers: the loss is
taken on a stand-in, and the network itself is asked, forward, along tangents and back, whatever the
loss has asked the stand-in, on tensors that have shapes alone (torch's meta device).
"""

import contextlib
import tempfile
import time
from collections.abc import Set
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone, build_backbone
from fewstep.errors import UserError
from fewstep.experiments.config.averages import decays
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset, DataShape, like, shape_of, to_model
from fewstep.experiments.rng import generator
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training import augmentation
from fewstep.experiments.training.initialisation import (
    WEIGHTLESS,
    NetworkForm,
    converted,
    own_form,
    taken_over,
)
from fewstep.experiments.training.network import (
    add_augmentation,
    build_network,
    choose_device,
    frozen_copy,
    uninitialised_weights,
)
from fewstep.experiments.training.prefetch import loader
from fewstep.experiments.training.reflow_pairs import Pairs
from fewstep.experiments.training.teacher import LoadedTeacher, starts_from
from fewstep.experiments.training.trainer import Trainer
from fewstep.experiments.validation import check_settings
from fewstep.objectives import Batch, Nets, Progress, Teacher
from fewstep.objectives.core.tangent import jvp

ROWS = 8  # of a batch: bootstrap rows and other shares are in it
SHARE = 4  # of the free memory, one in so many bytes is used
CPU_PARAMETERS = 20_000_000  # a CPU takes minutes for more
BYTES = 4  # of a parameter
COPIES = 4  # of a network in training: weights, gradients, two moments


@dataclass(frozen=True)
class Smoke:
    """What came of it.

    Attributes:
        parameters: of the network. bytes: of all networks and the optimiser, without activations.
        real: whether there were numbers, and not shapes alone. error: what failed, in a line.
    """

    parameters: int = 0
    bytes: int = 0
    real: bool = True
    seconds: float = 0.0
    error: str | None = None


def smoke(
    config: RunConfig, teachers: tuple[RunConfig, ...] = (), memory: int | None = None
) -> Smoke:
    """Train two steps; ``teachers``: the run's, its teacher's, and so on, which need not exist.

    ``memory``: bytes that may be used; None for a quarter of what is free. Nothing is written where
    runs are. Whatever goes wrong is the result's ``error``.
    """
    begun = time.perf_counter()
    result = Smoke()
    try:
        shape = shape_of(config.data)
        parameters, needed = requirements(config, teachers, shape)
        limit = free_memory(config) // SHARE if memory is None else memory
        slow = parameters > CPU_PARAMETERS and choose_device(config.training.device).type == "cpu"
        result = Smoke(parameters, needed, needed <= limit and not slow)
        data = like(shape, rows_of(config))
        check_settings(config, data)
        form = network_form(config, teachers)
        if result.real:
            _train(config, teachers, data)
        else:
            _shapes(config, teachers, data, form)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        result = replace(result, error=kind + " ".join(str(error).split()))
    return replace(result, seconds=time.perf_counter() - begun)


def rows_of(config: RunConfig) -> int:
    """``ROWS``, or a few more where the objective groups them."""
    group = config.objective.group_size
    return -(-ROWS // group) * group


def requirements(
    config: RunConfig, teachers: tuple[RunConfig, ...], shape: DataShape
) -> tuple[int, int]:
    """Parameters of the run's network, and bytes of all it holds, without activations."""
    own = parameters_of(config, shape)
    training = config.training
    copies = COPIES + len(decays(training.ema)) + len(training.posthoc_ema)
    copies += config.objective.target_decay is not None
    copies += config.objective.has_snapshots
    copies += COPIES if config.objective.companion_updates else 0
    total = own * copies
    if teachers:
        total += parameters_of(teachers[0], shape)
    return own, total * BYTES


def parameters_of(config: RunConfig, shape: DataShape) -> int:
    """Of the network, which takes no memory for that; ``UserError`` where the data do not fit."""
    augmented, jump = config.training.augment > 0, config.objective.uses_jump
    network = _network(config.backbone, shape, jump, augmented)  # type: ignore[arg-type]
    return sum(p.numel() for p in network.parameters())


def free_memory(config: RunConfig) -> int:
    """Bytes on the device that the run takes, less than a limit on this process' memory."""
    device = choose_device(config.training.device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [psutil.virtual_memory().available]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits)


def network_form(config: RunConfig, teachers: tuple[RunConfig, ...]) -> NetworkForm:
    """How the run's network is called, with the first weights of its teacher where it has them."""
    if not teachers or not starts_from(config, teachers[0]):
        return own_form(config)
    its = network_form(teachers[0], teachers[1:])
    return taken_over(config, teachers[0].key, teachers[0], its)


def _train(config: RunConfig, teachers: tuple[RunConfig, ...], data: Dataset) -> None:
    training = {**config.values["training"], "batch_size": rows_of(config), "compile": False}
    training |= {name: None for name in ("microbatch", "class_rows") if name in training}
    config = RunConfig({**config.values, "training": training})
    with tempfile.TemporaryDirectory() as folder:
        device = choose_device(config.training.device)
        teacher = None if not teachers else _teacher(config, teachers, data, device)
        trainer = Trainer(config, data, RunDirectory(Path(folder)), teacher)
        if config.objective.needs_pairs:
            x = to_model(data.train.x)
            trainer.pairs = Pairs(x, torch.randn_like(x), data.train.y)
            trainer.loader = loader(config, trainer.pairs)
        if config.objective.has_snapshots:
            trainer.snapshot = trainer._copy_network()
        for step in _steps(config):
            trainer.step = step
            trainer._update()
            trainer._check_finite()


def _teacher(
    config: RunConfig, teachers: tuple[RunConfig, ...], data: Dataset, device: torch.device
) -> LoadedTeacher:
    """A teacher that knows nothing: its weights are random."""
    own, form = teachers[0], network_form(teachers[0], teachers[1:])
    network = frozen_copy(build_network(own, data, form)).to(device)
    return LoadedTeacher(own.key, own, network, form, config.objective.path)


def _steps(config: RunConfig) -> tuple[int, int]:
    """The first and the last: schedules are at their ends."""
    return 0, max(1, config.training.steps - 1)


# ---- without numbers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """How a network was asked: with a jump length, a condition, along a tangent, with gradients."""

    d: bool
    y: bool
    tangent: bool
    gradient: bool


class StandIn(nn.Module):
    """x times a weight, in place of a network; ``calls``: what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: set[Call] = set()
        self.checkpointing = False

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        tangent = torch._C._functorch.is_functorch_wrapped_tensor(x)
        gradient = torch.is_grad_enabled() and self.weight.requires_grad
        self.calls.add(Call(d is not None, y is not None, tangent, gradient))
        return x * self.weight


def _shapes(
    config: RunConfig, teachers: tuple[RunConfig, ...], data: Dataset, form: NetworkForm
) -> None:
    objective, training = config.objective, config.training
    online, other = StandIn(), StandIn()
    other.requires_grad_(False)
    net = converted(online, config, form)
    frozen: Any = converted(other, config, form)
    teacher = taught = None
    if teachers and objective.needs_teacher:
        taught, its = StandIn(), network_form(teachers[0], teachers[1:])
        taught.requires_grad_(False)
        own = teachers[0].objective
        teacher = Teacher(own, converted(taught, teachers[0], its), objective.path)
    nets = Nets(net, frozen, teacher, objective.auxiliary_module(), frozen, teacher, net)
    x = to_model(data.train.x)
    eps = torch.randn_like(x) if objective.needs_pairs else None
    for step in _steps(config):
        g = generator(config.seed, "train", step)
        batch = Batch(x, data.train.y, data.train.y, eps)
        batch = augmentation.randomised(config, batch, data.num_classes, step, g)
        losses = [objective.companion_loss] if objective.companion_updates else []
        for take in [*losses, objective.loss]:
            mean = take(nets, batch, Progress(step, training.steps), g).per_sample.float().mean()
            mean.backward()
            if not bool(torch.isfinite(mean)):
                raise FloatingPointError(f"the loss is not finite at step {step + 1}")
    shape = DataShape(data.shape, data.num_classes, data.condition_dim, data.is_image)
    call_on_meta(config, shape, form.takes_d, online.calls | other.calls)
    if taught is not None:
        call_on_meta(teachers[0], shape, its.takes_d, taught.calls)


def distinct_calls(calls: Set[Call]) -> list[Call]:
    """What to ask for ``calls``: each thing once, tangents and gradients apart."""
    apart = {replace(call, tangent=False) for call in calls}
    apart |= {replace(call, gradient=False) for call in calls if call.tangent}
    kept = {c for c in apart if c.gradient or c.tangent or replace(c, gradient=True) not in apart}
    return sorted((c for c in kept if c.y or replace(c, y=True) not in kept), key=repr)


def call_on_meta(config: RunConfig, shape: DataShape, takes_d: bool, calls: Set[Call]) -> None:
    """Ask the run's network in all these ways, on tensors without numbers."""
    backbone, augmented = config.backbone, config.training.augment > 0
    known = [f for f in fields(backbone) if f.name in WEIGHTLESS]  # type: ignore[arg-type]
    plain = replace(backbone, **{f.name: f.default for f in known})  # type: ignore[type-var]
    if repeated := getattr(plain, "repeated", None):  # two blocks tell what all do
        fewer = min(2, getattr(plain, repeated))
        plain = replace(plain, **{repeated: fewer})  # type: ignore[type-var]
    for call in distinct_calls(calls):
        _ask(plain, shape, takes_d, augmented, call)  # type: ignore[arg-type]


@cache  # a backbone is frozen, hence hashable; the runs of a sweep share networks
def _network(backbone: Backbone, shape: DataShape, takes_d: bool, augmented: bool) -> nn.Module:
    about = (shape.shape, shape.num_classes, takes_d, shape.condition_dim)
    with uninitialised_weights():
        network = build_backbone(backbone, *about)
        if augmented:
            add_augmentation(network, type(backbone).__name__)
    return network


@cache
def _ask(backbone: Backbone, shape: DataShape, takes_d: bool, augmented: bool, call: Call) -> None:
    network = _network(backbone, shape, takes_d, augmented)  # type: ignore[arg-type]
    with torch.device("meta"):
        x, t = torch.empty(2, *shape.shape), torch.empty(2)
        d = torch.empty(2) if takes_d else None
        y = None
        if call.y and augmented:
            y = torch.empty(2, 1 + augmentation.LABELS)
        elif call.y and shape.num_classes:
            y = torch.empty(2, dtype=torch.int64)
        elif call.y and shape.condition_dim:
            y = torch.empty(2, shape.condition_dim)
    with torch.set_grad_enabled(call.gradient):
        if call.tangent:
            primals = (x, t) if d is None else (x, t, d)
            tangents = tuple(map(torch.empty_like, primals))
            value, _ = jvp(network, lambda x, t, d=None: network(x, t, d, y), primals, tangents)
        else:
            value = network(x, t, d, y)
        if value.shape != x.shape:
            raise UserError(f"the network gives {tuple(value.shape)}, expected {tuple(x.shape)}")
        if call.gradient:
            value.float().mean().backward()
            for parameter in network.parameters():
                parameter.grad = None
