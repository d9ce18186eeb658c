"""What a step costs, in training and in sampling: FLOPs, time and memory on a chosen backbone.

The unit is plain velocity regression on the same backbone, built without a jump length: one pass
forward and one back, as in a step of flow matching. A step here is the loss and its gradient; the
optimiser's update, the same for all, is left out.
"""

import contextlib
import copy
import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones import Backbone
from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.config.settings import PRECISIONS
from fewstep.experiments.progress import OnProgress
from fewstep.experiments.store.classify_error import failure_class
from fewstep.experiments.training.companion import take_turns
from fewstep.objectives import Batch, LinearPath, Loss, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import mean_square, rand, randn
from fewstep.objectives.core.wrappers import CountedNet

CPU = torch.device("cpu")
TOLERANCE = 0.03  # of the stated cost
TRAINING_STEPS = 10**6
SHORTEST = 0.1  # seconds: a shorter measurement is made of several steps
GRAPHS = 256  # that torch.compile may keep of one network, before it goes back to eager, unsaid


@dataclass(frozen=True)
class Setting:
    """What is measured on.

    Attributes:
        shape: of one example, without the batch. num_classes: 0 for none.
        batch: rows of a training step, and of a network call in sampling.
        at: how far training has come, from 0 to 1; some losses change their cost on the way.
        compile: torch.compile the network that is trained, as ``training.compile`` does.
    """

    backbone: Backbone
    shape: tuple[int, ...]
    num_classes: int = 0
    batch: int = 64
    device: torch.device = CPU
    precision: str = "float32"
    compile: bool = False
    at: float = 1.0

    def __post_init__(self) -> None:
        check_range("--batch", self.batch, 1)
        check_range("--classes", self.num_classes, 0)
        check_range("--at", self.at, 0, 1)
        check_choice("--precision", self.precision, PRECISIONS)

    @property
    def progress(self) -> Progress:
        return Progress(round(self.at * (TRAINING_STEPS - 1)), TRAINING_STEPS)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = self.precision != "float32"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)


@dataclass(frozen=True)
class Cost:
    """The costs of one objective; what was not measured is None.

    Attributes:
        flops: of a step. multiple: the same over the unit's. stated: ``Objective.step_cost``.
        seconds: median of a step. time: median of a step's time over the unit's in the same round,
            with the quartiles ``time_low`` and ``time_high``.
        memory: bytes a step takes at its peak, beyond the networks and the batch.
        calls: network calls of a sampling step. sampled: images a second and network call.
    """

    name: str
    title: str
    flops: int
    multiple: float
    stated: float | None
    seconds: float | None = None
    time: float | None = None
    time_low: float | None = None
    time_high: float | None = None
    memory: int | None = None
    calls: int | None = None
    sampled: float | None = None

    @property
    def over(self) -> float | None:
        """How far the counted multiple is above the stated one, as a share of it."""
        return None if self.stated is None else self.multiple / self.stated - 1

    @property
    def holds(self) -> bool | None:
        """Whether the step costs at most 3% more than stated; None if nothing is."""
        return None if self.over is None else self.over <= TOLERANCE


class Regression(Objective):
    """The unit of cost: |F(x_t, t) - (eps - x)|^2 on the linear path."""

    title: ClassVar[str] = "Plain regression"
    path: ClassVar[LinearPath] = LinearPath()

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, t, eps = batch.x, rand(batch.x, g), randn(batch.x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=batch.y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)


class Bench:
    """Random data, and the networks that all objectives share, with and without a jump length."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        device, rows = setting.device, (setting.batch, *setting.shape)
        self.g = Generator(device).manual_seed(0)
        with named_errors("a batch", setting):
            self.x = torch.randn(rows, generator=self.g, device=device)
            self.eps = torch.randn(rows, generator=self.g, device=device)
            labels = torch.arange(setting.batch, device=device) % max(1, setting.num_classes)
        self.y = labels if setting.num_classes else None
        self._networks: dict[bool, tuple[nn.Module, nn.Module, Any]] = {}

    def networks(self, jump: bool) -> tuple[nn.Module, nn.Module, Any]:
        """The network to train, a frozen copy (the EMA, say), and the former, compiled if asked."""
        if jump not in self._networks:
            setting = self.setting
            torch.manual_seed(0)
            net = setting.backbone.build(setting.shape, setting.num_classes, jump)
            for parameter in net.parameters():  # as after some training: none of it is zero
                if not bool(parameter.any()):
                    nn.init.normal_(parameter, std=0.02)
            net.to(setting.device)
            frozen = copy.deepcopy(net).requires_grad_(False).eval()
            self._networks[jump] = net, frozen, torch.compile(net) if setting.compile else net
        return self._networks[jump]

    def teacher(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """A velocity, at the cost of one pass of the network without a jump length."""
        _, frozen, _ = self.networks(False)
        return frozen(x, t, y=y)

    def forget(self) -> None:
        for net, _, _ in self._networks.values():
            net.zero_grad(set_to_none=True)


class Subject:
    """One objective on the bench."""

    def __init__(self, objective: Objective, bench: Bench) -> None:
        self.objective, self.bench = objective, bench
        self.jump = objective.uses_jump
        self.eager, self.frozen, self.compiled = bench.networks(self.jump)
        auxiliary = objective.auxiliary_module()
        self.auxiliary = None if auxiliary is None else auxiliary.to(bench.setting.device)
        self.companion = copy.deepcopy(self.eager) if objective.companion_updates else None
        compiles = bench.setting.compile and self.companion is not None
        self.asked: Any = torch.compile(self.companion) if compiles else self.companion

    def step(self, eager: bool = False) -> None:
        """A loss and its gradient; the device may still be at work when this returns."""
        bench, objective = self.bench, self.objective
        bench.forget()
        if self.auxiliary is not None:
            self.auxiliary.zero_grad(set_to_none=True)
        online = self.eager if eager else self.compiled
        companion = self.companion if eager else self.asked
        teacher = bench.teacher if objective.needs_teacher else None
        nets = Nets(online, self.frozen, teacher, self.auxiliary, self.frozen, teacher, companion)
        eps = bench.eps if objective.needs_pairs else None
        batch = Batch(bench.x, bench.y, bench.y, eps)

        def back(take: Callable[..., Loss]) -> None:
            with bench.setting.autocast():
                loss = take(nets, batch, bench.setting.progress, bench.g)
            loss.per_sample.float().mean().backward()

        if self.companion is not None:
            take_turns(self.companion, self.eager)
            for _ in range(objective.companion_updates):
                self.companion.zero_grad(set_to_none=True)
                back(objective.companion_loss)
            take_turns(self.eager, self.companion)
        back(objective.loss)

    def flops(self) -> int:
        """Of a step, exact; attention is counted as its matrix products, whatever the kernel.

        The fused kernels recompute some of them, and some are not counted at all.
        """
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            self.step(eager=True)
        return int(counter.get_total_flops())

    def calls(self) -> int:
        """Network calls of one sampling step."""
        bench, path = self.bench, self.objective.path
        counted = CountedNet(self.frozen)
        y = None if bench.y is None else bench.y[:2]
        with torch.no_grad(), bench.setting.autocast():
            self.objective.sample(counted, bench.eps[:2], y, path.times(1), bench.g)
        return counted.calls

    def call(self) -> None:
        bench = self.bench
        t = torch.full((bench.setting.batch,), 0.5, device=bench.setting.device)
        with torch.no_grad(), bench.setting.autocast():
            self.frozen(bench.x, t, t if self.jump else None, bench.y)


def measure(
    setting: Setting,
    objectives: Mapping[str, Objective],
    rounds: int,
    on_progress: OnProgress = lambda phase, done, total, rate: None,
) -> list[Cost]:
    """The costs of ``objectives``, by name; with 0 ``rounds`` the FLOPs alone.

    Times are taken in rounds, every objective in each, so that a machine that slows down slows all.
    Raises ``UserError``: the backbone does not fit the data, or the batch not into memory.
    """
    check_range("--rounds", rounds, 0)
    bench = Bench(setting)
    unit = Subject(Regression(), bench)
    one = unit.flops()
    subjects, costs, begun = {}, {}, time.monotonic()
    for done, (name, objective) in enumerate(objectives.items(), 1):
        with named_errors(name, setting):
            subjects[name] = Subject(objective, bench)
            flops, stated = subjects[name].flops(), objective.step_cost()
        costs[name] = Cost(name, objective.title, flops, flops / one, stated)
        on_progress("count", done, len(objectives), done / (time.monotonic() - begun))
    if not rounds:
        return list(costs.values())
    graphs: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if setting.compile:
        import torch._dynamo.config as dynamo  # takes a second

        graphs = dynamo.patch(cache_size_limit=GRAPHS)
    with graphs:
        with named_errors(unit.objective.title, setting):
            unit.step()
            repeats = max(1, round(SHORTEST / seconds(unit.step, 3, setting.device)))
        for name, subject in subjects.items():
            with named_errors(name, setting):
                subject.step()  # what the first step makes, and compiles, is not measured
                bench.forget()
                memory = peak_growth(subject.step, setting.device)
                costs[name] = replace(costs[name], memory=memory, calls=subject.calls())
        units, steps, calls = _seconds(unit, subjects, rounds, repeats, on_progress)
    quartiles = np.percentile(steps / units, [25, 50, 75], axis=1).T
    return [
        replace(
            cost,
            seconds=float(np.median(steps[k])),
            time_low=float(quartiles[k, 0]),
            time=float(quartiles[k, 1]),
            time_high=float(quartiles[k, 2]),
            sampled=setting.batch / float(np.median(calls[k])),
        )
        for k, cost in enumerate(costs.values())
    ]


def _seconds(
    unit: Subject, subjects: Mapping[str, Subject], rounds: int, repeats: int, report: OnProgress
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of the unit's step (rounds,), and of each subject's step and call (subjects, rounds)."""
    setting = unit.bench.setting
    units, shape = np.empty(rounds), (len(subjects), rounds)
    steps, calls = np.empty(shape), np.empty(shape)
    order = list(enumerate(subjects.items()))
    done, begun = 0, time.monotonic()
    for i in range(rounds):
        units[i] = seconds(unit.step, repeats, setting.device)
        for k, (name, subject) in order:
            with named_errors(name, setting):
                steps[k, i] = seconds(subject.step, repeats, setting.device)
                calls[k, i] = seconds(subject.call, repeats, setting.device)
            done += 1
            report("time", done, steps.size, done / (time.monotonic() - begun))
        order = order[1:] + order[:1]  # no one is always the first
    return units, steps, calls


def seconds(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Seconds that ``work`` takes, the mean of ``repeats`` in a row."""
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - begun) / repeats


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peak_growth(work: Callable[[], None], device: torch.device) -> int | None:
    """Bytes by which memory in use grows at its peak while ``work`` is done."""
    gc.collect()
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronise(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    if device.type != "cpu":
        return None
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but kept would hide the growth
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except (OSError, AttributeError):
        return None
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextlib.contextmanager
def named_errors(name: str, setting: Setting) -> Iterator[None]:
    """Being out of memory becomes the user's to mend."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if failure_class(error) != "oom":
            raise
        raise UserError(
            f"{name} does not fit into the memory of {setting.device} with --batch {setting.batch}"
        ) from None
