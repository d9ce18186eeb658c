"""Checks of the loss."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.objectives.conformance.case import (
    END,
    TOTAL,
    Call,
    CallRecorder,
    Case,
    Result,
    nonlinear_test_net,
    require,
    verdict,
)
from fewstep.objectives.core.base import Batch, Net, Progress
from fewstep.objectives.core.batch_math import expand

BATCHES, ROWS = 16, 4096
ALONG = 0.1  # how far from the ideal the loss is seen to rise
BIAS = 0.05  # a finite grid's ideal may be off by this share of the slope there
NO_OPTIMUM = "no gaussian_optimum() is given"


def time_domain(case: Case) -> Result:
    """Times in [0, t_max], jumps in [0, t], jumps where and only where the objective has them.

    Training must come near the time that sampling begins at.
    """
    student, teacher = CallRecorder(nonlinear_test_net), CallRecorder(case.teacher)
    nets = case.nets(student, student, student, teacher)
    for i, part in enumerate((0.0, 0.2, 0.4, 0.6, 0.8)):
        case.loss(nets, case.batch(512, i), i, Progress(int(part * TOTAL), TOTAL))
    case.loss(nets, case.batch(512, 9), 9)
    require(bool(student.calls), "the loss never calls the network it is to train")
    t_max, trained = case.path.t_max, float(torch.cat([c.t for c in student.calls]).max())
    count = len(student.calls)
    for steps in (1, 2, 3, 7, [t_max, 0.7 * t_max, 0.35 * t_max, 0.0]):
        case.sample(student, case.noise(4, 0), steps)
    sampled = float(torch.cat([c.t for c in student.calls[count:]]).max())
    for call in student.calls:
        _require_shapes(call, case.objective.uses_jump)
    for call in teacher.calls:
        _require_shapes(call, False)
    calls = student.calls + teacher.calls
    t = torch.cat([c.t for c in calls]) / t_max
    measured = [
        ("times below 0, over t_max", float(-t.min()), 1e-9),
        ("largest time over t_max, less 1", float(t.max()) - 1, 1e-9),
        ("largest time sampled, less that trained", (sampled - trained) / t_max, 0.1),
    ]
    if jumps := [(c.d, c.t - c.d) for c in calls if c.d is not None]:
        d, left = (torch.cat(parts) for parts in zip(*jumps, strict=True))
        measured.append(("jumps below 0", float(-d.min()), 1e-9))
        flags = ("flags that are not 0 or 1", float((d * (1 - d)).abs().max()), 0.0)
        beyond = ("jumps beyond the data", float(-left.min()), 1e-9)
        measured.append(flags if case.objective.jump_is_flag else beyond)
    return verdict(*measured)


def _require_shapes(call: Call, uses_jump: bool) -> None:
    given = "not " if call.d is None else ""
    require((call.d is not None) == uses_jump, f"uses_jump is {uses_jump}, but d was {given}given")
    for name, value in (("t", call.t), ("d", call.d)):
        if value is not None:
            shape, rows = tuple(value.shape), len(call.x)
            require(shape == (rows,), f"{name} was given with shape {shape}, not ({rows},)")
            finite = bool(value.isfinite().all())
            require(finite, f"{name} was given with numbers that are not finite")


def rows(case: Case) -> Result:
    """A finite loss, a time, and a jump where there are jumps, for every row, of any shape."""
    uses_jump = case.objective.uses_jump
    for shape in ((2,), (3, 4, 4)):
        loss = case.loss(case.nets(online=nonlinear_test_net), case.batch(64, 0, shape), 0)
        detail = f"uses_jump is {uses_jump}, but Loss.d is {loss.d}"
        require((loss.d is not None) == uses_jump, detail)
        for name, value in (("per_sample", loss.per_sample), ("t", loss.t), ("d", loss.d)):
            if value is not None:
                its = tuple(value.shape)
                require(its == (64,), f"{name} has shape {its}, not (64,)")
        require(bool(loss.per_sample.isfinite().all()), "per_sample is not finite")
        require(not any(v.requires_grad for v in loss.logs.values()), "logs are not detached")
    return True, "(B,) and finite for (B, 2) and (B, 3, 4, 4)"


def _scaled(scale: Tensor, net: Net) -> Net:
    return lambda x, t, d=None, y=None: scale * net(x, t, d, y)


def gradients(case: Case) -> Result:
    """They reach the online network and what is learned along with it, nothing else.

    A loss with a companion may go back through the teacher, whose weights are constant.
    """
    fixed = () if case.objective.companion_updates else ("teacher",)
    names = ("online", "ema", "snapshot", *fixed)
    scales = {n: torch.ones((), dtype=torch.float64, requires_grad=True) for n in names}
    networks: dict[str, Net] = dict.fromkeys(names, nonlinear_test_net)
    if fixed:
        networks["teacher"] = case.teacher
    nets = case.nets(**{name: _scaled(scales[name], net) for name, net in networks.items()})
    for progress in (Progress(0, TOTAL), END):
        case.loss(nets, case.batch(64, 0), 0, progress).per_sample.mean().backward()
    online = scales.pop("online").grad
    require(online is not None and float(online.abs()) > 0, "none reaches the online network")
    for name, scale in scales.items():
        require(scale.grad is None, f"one reaches the {name} network")
    trained = case.auxiliary if case.trains_auxiliary else None
    learned = [] if trained is None else trained.parameters()
    require(all(p.grad is not None for p in learned), "none reaches auxiliary_module()")
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
    if case.optimum is None or not case.companion_is_known:
        return None, NO_OPTIMUM
    names = list(DIRECTIONS) if case.objective.uses_jump else list(DIRECTIONS)[:-1]
    batches = [case.batch(ROWS, 1000 + i) for i in range(BATCHES)]
    at = torch.stack([_gradient(case, names, 0.0, b, i) for i, b in enumerate(batches)])
    quarter = list(enumerate(batches))[: BATCHES // 4]
    below, above = (
        float(torch.stack([_gradient(case, names, side, b, i) for i, b in quarter]).mean(0)[0])
        for side in (-ALONG, ALONG)
    )
    slopes = f"{below:.3g} and {above:.3g}"
    require(below < 0 < above, f"no minimum along x: the slopes beside it are {slopes}")
    slope = min(-below, above)
    mean, error = at.mean(0), at.std(0) / BATCHES**0.5
    measured = [
        (f"gradient along {name}", m, max(5 * e, BIAS * slope))
        for name, m, e in zip(names, mean.abs().tolist(), error.tolist(), strict=True)
    ]
    aside = ("gradient along x beside the slope", float(mean[0].abs()), slope / 4)
    return verdict(*measured, aside)


def _gradient(case: Case, names: list[str], theta: float, batch: Batch, seed: int) -> Tensor:
    """d/dtheta of the mean loss, for every direction, ``theta`` away from the ideal along x."""
    thetas = torch.zeros(len(names), dtype=torch.float64)
    thetas[0] = theta
    thetas.requires_grad_()

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        F = case.test_net(x, t, d, y)
        for part, name in zip(thetas, names, strict=True):
            F = F + part * DIRECTIONS[name](x, t, t if d is None else d)
        return F

    companion = case.companion_of(net) if case.objective.companion_updates else None
    loss = case.loss(case.nets(online=net, companion=companion), batch, seed)
    (slope,) = torch.autograd.grad(loss.per_sample.mean(), thetas)
    return slope


def shared_noise(case: Case) -> Result:
    """With data 0, every noisy input of a loss is parallel to its row's eps."""
    if not case.objective.shares_noise:
        return None, "not demanded"
    D = 32
    record = CallRecorder(case.test_net)
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
    return verdict(("1 - |cosine| of two inputs of a row", worst, 1e-9))


def _directions(x: Tensor) -> Tensor:
    """Unit vectors along the rows, less those at noise level 0, where nothing is left."""
    size = x.norm(dim=1, keepdim=True)
    return (x / size)[size[:, 0] > 1e-9]


def float32(case: Case) -> Result:
    """float32 in, float32 everywhere."""
    record = CallRecorder(nonlinear_test_net)
    noise = case.noise(64, 1).float()
    batch = case.batch(64, 0)
    small = Batch(batch.x.float(), eps=None if batch.eps is None else batch.eps.float())
    loss = case.loss(case.nets(record, record, record), small, 0)
    tensors = {"per_sample": loss.per_sample, "t": loss.t, "d": loss.d}
    tensors["samples"] = case.sample(record, noise, 2)
    for c in record.calls:
        tensors |= {"a network's x": c.x, "a network's t": c.t, "a network's d": c.d}
        for name, value in tensors.items():
            if value is not None:
                require(value.dtype == torch.float32, f"{name}: {value.dtype}")
    return True, "float32 in, float32 out"
