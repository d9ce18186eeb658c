"""What a step costs, in training and in sampling: FLOPs, time and memory on a chosen backbone.

The unit is plain velocity regression on the same backbone, built without a jump length: one pass
forward and one back. A step of flow matching is just that, so a cost is a multiple of flow
matching's; and it is no registered objective, so that anybody's can be held against it.

A training step here is the loss and its gradient. The optimiser's update, the same for all, is left
out.
"""

from __future__ import annotations

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
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones import Backbone
from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.drawing import CountedNet
from fewstep.experiments.settings import PRECISIONS
from fewstep.objectives import Batch, Linear, Loss, Nets, Objective, Progress
from fewstep.objectives.base import mean_square, rand, randn

CPU = torch.device("cpu")
TOLERANCE = 0.03  # of the stated cost
TRAINING_STEPS = 10**6
SHORTEST = 0.1  # seconds: a shorter measurement is made of several steps
GRAPHS = 256  # that torch.compile may keep of one network; all objectives share it here

OnProgress = Callable[[str, int, int, float], None]
"""(phase, done, of how many, measurements a second)"""


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
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


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
    path: ClassVar[Linear] = Linear()

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, t, eps = batch.x, rand(batch.x, g), randn(batch.x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=batch.y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)


class Bench:
    """Random data, and the networks that all objectives share.

    There are two to train, with and without a jump length, and a frozen copy of each, which stands
    for the EMA and the former network; the one without gives the teacher's velocity.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        device, rows = setting.device, (setting.batch, *setting.shape)
        self.g = Generator(device).manual_seed(0)
        self.x = torch.randn(rows, generator=self.g, device=device)
        self.eps = torch.randn(rows, generator=self.g, device=device)
        labels = torch.arange(setting.batch, device=device) % max(1, setting.num_classes)
        self.y = labels if setting.num_classes else None
        self.online: dict[bool, nn.Module] = {}
        self.frozen: dict[bool, nn.Module] = {}
        self.compiled: dict[bool, Any] = {}

    def network(self, jump: bool) -> nn.Module:
        """The network to train, built when it is asked for first."""
        if jump not in self.online:
            setting = self.setting
            torch.manual_seed(0)
            net = setting.backbone.build(setting.shape, setting.num_classes, jump)
            for parameter in net.parameters():  # as after some training: none of it is zero
                if not bool(parameter.any()):
                    nn.init.normal_(parameter, std=0.02)
            self.online[jump] = net.to(setting.device)
            self.frozen[jump] = copy.deepcopy(self.online[jump]).requires_grad_(False).eval()
            self.compiled[jump] = torch.compile(net) if setting.compile else net
        return self.online[jump]

    def teacher(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """A velocity, at the cost of one pass of the network without a jump length."""
        self.network(False)
        return self.frozen[False](x, t, y=y)

    def forget(self) -> None:
        """Drop the gradients of all networks."""
        for net in self.online.values():
            net.zero_grad(set_to_none=True)


class Subject:
    """One objective on the bench."""

    def __init__(self, objective: Objective, bench: Bench) -> None:
        self.objective, self.bench = objective, bench
        self.jump = objective.uses_jump
        self.eager = bench.network(self.jump)
        learned = objective.learned_parts()
        self.learned = None if learned is None else learned.to(bench.setting.device)

    @property
    def frozen(self) -> nn.Module:
        return self.bench.frozen[self.jump]

    def step(self, eager: bool = False) -> None:
        """A loss and its gradient; the device may still be at work when this returns."""
        bench, objective = self.bench, self.objective
        bench.forget()
        if self.learned is not None:
            self.learned.zero_grad(set_to_none=True)
        nets = Nets(
            online=self.eager if eager else bench.compiled[self.jump],
            ema=self.frozen,
            former=self.frozen,
            teacher=bench.teacher if objective.needs_teacher else None,
            learned=self.learned,
        )
        eps = bench.eps if objective.needs_pairs else None
        batch = Batch(bench.x, bench.y, bench.y, eps)
        with bench.setting.autocast():
            loss = objective.loss(nets, batch, bench.setting.progress, bench.g)
        loss.per_sample.float().mean().backward()

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
        """One network call of a sampler."""
        bench = self.bench
        t = torch.full((bench.setting.batch,), 0.5, device=bench.setting.device)
        with torch.no_grad(), bench.setting.autocast():
            self.frozen(bench.x, t, t if self.jump else None, bench.y)

    def memory(self) -> int | None:
        """Bytes at the peak of a step beyond what is there before it; None where none can tell."""
        self.bench.forget()
        return peak_growth(self.step, self.bench.setting.device)


def measure(
    setting: Setting,
    objectives: Mapping[str, Objective],
    rounds: int,
    on_progress: OnProgress = lambda phase, done, total, rate: None,
) -> list[Cost]:
    """The costs of ``objectives``, by name; with 0 ``rounds`` the FLOPs alone.

    Times are taken in rounds, every objective in each, so that a machine that slows down slows all.

    Raises:
        UserError: the backbone does not fit the data, or the batch not into memory.
    """
    check_range("--rounds", rounds, 0)
    bench = Bench(setting)
    unit = Subject(Regression(), bench)
    one = unit.flops()
    subjects, costs, begun = {}, {}, time.monotonic()
    for done, (name, objective) in enumerate(objectives.items(), 1):
        with told(name, setting):
            subjects[name] = Subject(objective, bench)
            flops, stated = subjects[name].flops(), objective.step_cost()
        costs[name] = Cost(name, objective.title, flops, flops / one, stated)
        on_progress("count", done, len(objectives), done / (time.monotonic() - begun))
    if not rounds:
        return list(costs.values())
    with _graphs(setting):
        repeats = _repeats(unit)
        for name, subject in subjects.items():
            with told(name, setting):
                subject.step()  # what the first step makes, and compiles, is not measured
                costs[name] = replace(costs[name], memory=subject.memory(), calls=subject.calls())
        return _timed(unit, subjects, costs, rounds, repeats, on_progress)


def _timed(
    unit: Subject,
    subjects: Mapping[str, Subject],
    costs: Mapping[str, Cost],
    rounds: int,
    repeats: int,
    on_progress: OnProgress,
) -> list[Cost]:
    setting = unit.bench.setting
    steps: dict[str, list[float]] = {name: [] for name in subjects}
    calls: dict[str, list[float]] = {name: [] for name in subjects}
    units = []
    total, begun = rounds * len(subjects), time.monotonic()
    names = list(subjects)
    for i in range(rounds):
        units.append(seconds(unit.step, repeats, setting.device))
        turned = names[i % len(names) :] + names[: i % len(names)]  # no one is always the first
        for done, name in enumerate(turned, i * len(names) + 1):
            with told(name, setting):
                steps[name].append(seconds(subjects[name].step, repeats, setting.device))
                calls[name].append(seconds(subjects[name].call, repeats, setting.device))
            on_progress("time", done, total, done / (time.monotonic() - begun))
    made = []
    for name, cost in costs.items():
        low, middle, high = np.percentile(np.divide(steps[name], units), [25, 50, 75])
        made.append(
            replace(
                cost,
                seconds=float(np.median(steps[name])),
                time=float(middle),
                time_low=float(low),
                time_high=float(high),
                sampled=setting.batch / float(np.median(calls[name])),
            )
        )
    return made


def seconds(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Seconds that ``work`` takes, the mean of ``repeats`` in a row."""
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - begun) / repeats


def _repeats(unit: Subject) -> int:
    """How many steps of the unit take long enough to be measured."""
    device = unit.bench.setting.device
    with told(unit.objective.title, unit.bench.setting):
        unit.step()
        return max(1, round(SHORTEST / seconds(unit.step, 3, device)))


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
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but kept would hide the growth
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except (OSError, AttributeError):
        return None
    if device.type != "cpu":
        return None
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _graphs(setting: Setting) -> contextlib.AbstractContextManager[Any]:
    """Let torch.compile keep all the graphs it makes; else it would go back to eager, unsaid."""
    if not setting.compile:
        return contextlib.nullcontext()
    import torch._dynamo.config as dynamo  # takes a second

    return dynamo.patch(cache_size_limit=GRAPHS)


@contextlib.contextmanager
def told(name: str, setting: Setting) -> Iterator[None]:
    """Being out of memory becomes the user's to mend."""
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise UserError(
            f"{name} does not fit into the memory of {setting.device} with --batch {setting.batch}"
        ) from None
