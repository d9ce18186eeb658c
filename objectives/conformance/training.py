"""Checks of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.objectives.base import Batch, Net, Progress
from fewstep.objectives.conformance.case import (
    END,
    TOTAL,
    Call,
    Case,
    Recorder,
    Result,
    bent,
    judged,
)
from fewstep.objectives.paths import expand

BATCHES, ROWS = 16, 4096
ALONG = 0.1  # how far from the ideal the loss is seen to rise
BIAS = 0.05  # a finite grid's ideal may be off by this share of the slope there
NO_IDEAL = "no ideal() is given"


def time_domain(case: Case) -> Result:
    """Times in [0, t_max], jumps in [0, t], jumps where and only where the objective has them.

    Sampling begins at t_max, so training must come near it.
    """
    student, teacher = Recorder(bent), Recorder(case.teacher)
    nets = case.nets(student, student, student, teacher)
    for i, part in enumerate((0.0, 0.2, 0.4, 0.6, 0.8)):
        case.loss(nets, case.batch(512, i), i, Progress(int(part * TOTAL), TOTAL))
    case.loss(nets, case.batch(512, 9), 9)
    if not student.calls:
        return False, "the loss never asks the network it is to train"
    t_max, trained = case.path.t_max, torch.cat([c.t for c in student.calls])
    for steps in (1, 2, 3, 7, [t_max, 0.7 * t_max, 0.35 * t_max, 0.0]):
        case.sample(student, case.noise(4, 0), steps)
    shapes = [_misshapen(c, case.objective.uses_jump) for c in student.calls]
    shapes += [_misshapen(c, False) for c in teacher.calls]
    if any(shapes):
        return False, next(s for s in shapes if s)
    calls = student.calls + teacher.calls
    t = torch.cat([c.t for c in calls]) / t_max
    measures = [
        ("times below 0, over t_max", float(-t.min()), 1e-9),
        ("largest time over t_max, less 1", float(t.max()) - 1, 1e-9),
        ("1 less the largest time trained", 1 - float(trained.max()) / t_max, 0.1),
    ]
    jumps = [(c.t, c.d) for c in calls if c.d is not None]
    if jumps:
        d, left = torch.cat([d for _, d in jumps]), torch.cat([t - d for t, d in jumps])
        measures.append(("jumps below 0", float(-d.min()), 1e-9))
        if case.objective.jump_is_flag:
            measures.append(("flags that are not 0 or 1", float((d * (1 - d)).abs().max()), 0.0))
        else:
            measures.append(("jumps beyond the data", float(-left.min()), 1e-9))
    return judged(*measures)


def _misshapen(call: Call, uses_jump: bool) -> str | None:
    if (call.d is not None) != uses_jump:
        return f"uses_jump is {uses_jump}, but d was {'not ' if call.d is None else ''}given"
    for name, value in (("t", call.t), ("d", call.d)):
        if value is not None and value.shape != (len(call.x),):
            return f"{name} was given with shape {tuple(value.shape)}, not ({len(call.x)},)"
        if value is not None and not bool(value.isfinite().all()):
            return f"{name} was given with numbers that are not finite"
    return None


def rows(case: Case) -> Result:
    """A finite loss, a time, and a jump where there are jumps, for every row, of any shape."""
    for shape in ((2,), (3, 4, 4)):
        loss = case.loss(case.nets(online=bent), case.batch(64, 0, shape), 0)
        if loss.per_sample.shape != (64,):
            return False, f"per_sample has shape {tuple(loss.per_sample.shape)}, not (64,)"
        if loss.t.shape != (64,):
            return False, f"t has shape {tuple(loss.t.shape)}, not (64,)"
        if (loss.d is not None) != case.objective.uses_jump:
            return False, f"uses_jump is {case.objective.uses_jump}, but Loss.d is {loss.d}"
        if loss.d is not None and loss.d.shape != (64,):
            return False, f"d has shape {tuple(loss.d.shape)}, not (64,)"
        if not bool(loss.per_sample.isfinite().all()):
            return False, "per_sample is not finite"
        if any(v.requires_grad for v in loss.logs.values()):
            return False, "logs are not detached"
    return True, "(B,) and finite for (B, 2) and (B, 3, 4, 4)"


@dataclass(frozen=True)
class _Scaled:
    """A network times a parameter."""

    scale: Tensor
    net: Net

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        return self.scale * self.net(x, t, d, y)


def gradients(case: Case) -> Result:
    """They reach the online network and what is learned along with it, nothing else."""
    scales = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(4)]
    online, ema, former, teacher = scales
    nets = case.nets(
        online=_Scaled(online, bent),
        ema=_Scaled(ema, bent),
        former=_Scaled(former, bent),
        teacher=_Scaled(teacher, case.teacher),
    )
    for progress in (Progress(0, TOTAL), END):
        case.loss(nets, case.batch(64, 0), 0, progress).per_sample.mean().backward()
    if online.grad is None or not float(online.grad.abs()) > 0:
        return False, "none reaches the online network"
    for name, scale in (("ema", ema), ("former", former), ("teacher", teacher)):
        if scale.grad is not None:
            return False, f"one reaches the {name} network"
    if nets.learned is not None and any(p.grad is None for p in nets.learned.parameters()):
        return False, "none reaches learned_parts()"
    return True, "only into the online network"


DIRECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x": lambda x, t, d: x,
    "1": lambda x, t, d: torch.ones_like(x),
    "t x": lambda x, t, d: expand(t, x) * x,
    "d x": lambda x, t, d: expand(d, x) * x,
}


def stationary(case: Case) -> Result:
    """Around the ideal network the expected loss rises, and its gradient there is 0.

    The network is the ideal plus theta h, for h = x, 1, t x (and d x): none of the gradients in
    theta may differ from 0 by 5 standard errors (or by what a finite grid explains), and along x
    they are negative below the ideal and positive above.
    """
    if case.ideal is None:
        return None, NO_IDEAL
    names = list(DIRECTIONS) if case.objective.uses_jump else list(DIRECTIONS)[:-1]
    batches = [case.batch(ROWS, 1000 + i) for i in range(BATCHES)]
    at = torch.stack([_gradient(case, names, 0.0, b, i) for i, b in enumerate(batches)])
    quarter = list(enumerate(batches))[: BATCHES // 4]
    below, above = (
        float(torch.stack([_gradient(case, names, side, b, i) for i, b in quarter]).mean(0)[0])
        for side in (-ALONG, ALONG)
    )
    if not below < 0 < above:
        return False, f"no minimum along x: the slopes beside it are {below:.3g} and {above:.3g}"
    slope = min(-below, above)
    mean, error = at.mean(0), at.std(0) / BATCHES**0.5
    measures = []
    for name, m, e in zip(names, mean.abs().tolist(), error.tolist(), strict=True):
        measures.append((f"gradient along {name}", m, max(5 * e, BIAS * slope)))
    measures.append(("gradient along x beside the slope", float(mean[0].abs()), slope / 4))
    return judged(*measures)


def _gradient(case: Case, names: list[str], theta: float, batch: Batch, seed: int) -> Tensor:
    """d/dtheta of the mean loss, for every direction, ``theta`` away from the ideal along x."""
    thetas = torch.zeros(len(names), dtype=torch.float64)
    thetas[0] = theta
    thetas.requires_grad_()

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        F = case.some(x, t, d, y)
        for part, name in zip(thetas, names, strict=True):
            F = F + part * DIRECTIONS[name](x, t, t if d is None else d)
        return F

    loss = case.loss(case.nets(online=net), batch, seed)
    (found,) = torch.autograd.grad(loss.per_sample.mean(), thetas)
    return found


def shared_noise(case: Case) -> Result:
    """With data 0, every noisy input of a loss is parallel to its row's eps."""
    if not case.objective.shares_noise:
        return None, "not demanded"
    D = 32
    record = Recorder(case.some)
    eps = case.noise(64, 1, (D,))
    batch = Batch(torch.zeros_like(eps), eps=eps if case.objective.needs_pairs else None)
    worst = 0.0
    for i, progress in enumerate((Progress(TOTAL // 2, TOTAL), END)):
        record.calls.clear()
        case.loss(case.nets(record, record, record), batch, i, progress)
        inputs = [_directions(c.x) for c in record.calls]
        most = max(inputs, key=len)
        for x in inputs:
            worst = max([worst, *(1 - (x @ most.T).abs().amax(1)).tolist()])
    return judged(("1 - |cosine| of two inputs of a row", worst, 1e-9))


def _directions(x: Tensor) -> Tensor:
    """Unit vectors along the rows, less those at noise level 0, where nothing is left."""
    size = x.norm(dim=1, keepdim=True)
    return (x / size)[size[:, 0] > 1e-9]


def float32(case: Case) -> Result:
    """float32 in, float32 everywhere."""
    record = Recorder(bent)
    noise = case.noise(64, 1).float()
    batch = case.batch(64, 0)
    small = Batch(batch.x.float(), eps=None if batch.eps is None else batch.eps.float())
    loss = case.loss(case.nets(record, record, record), small, 0)
    found = {"per_sample": loss.per_sample, "t": loss.t, "d": loss.d}
    found["samples"] = case.sample(record, noise, 2)
    for c in record.calls:
        found |= {"a network's x": c.x, "a network's t": c.t, "a network's d": c.d}
        for name, value in found.items():
            if value is not None and value.dtype != torch.float32:
                return False, f"{name}: {value.dtype}"
    return True, "float32 in, float32 out"
