"""Checks of the sampler, and of what loss and sampler have in common: labels, randomness."""

import torch
from torch import Tensor

from fewstep.objectives.conformance.case import (
    STD,
    CallRecorder,
    Case,
    Result,
    g,
    nonlinear_test_net,
    rel_error,
    require,
    verdict,
)
from fewstep.objectives.conformance.training import NO_OPTIMUM

EXACT = 1e-9
MANY = 100_000  # samples, whose standard deviation is good to 0.2%
FINE = (64, 128, 256)


def jumps(case: Case) -> Result:
    """One step of the ideal network follows the flow exactly, as far as ``jump_range`` goes."""
    if case.optimum is None:
        return None, NO_OPTIMUM
    jump_range, t_max, rows = case.objective.jump_range, case.path.t_max, 64
    if jump_range == "ode":
        return None, "a step goes as far as the flow is straight"
    if jump_range == "one_step":
        return None, "only from t_max to the data: see the samples"
    eps = case.noise(rows, 0)
    t = t_max * torch.linspace(0.05, 1, rows, dtype=torch.float64)
    u = 0.9 * t * torch.rand(rows, generator=g(1), dtype=torch.float64)
    x_t, x_u, x = (_on_the_way(case, eps, at) for at in (t, u, torch.zeros_like(t)))
    denoised = case.objective.denoise(case.optimum, x_t, t, None)
    measured = [("to the data", rel_error(denoised, x), EXACT)]
    if jump_range == "any":
        x_jumped = case.objective.jump(case.optimum, x_t, t, u, None)
        measured.append(("to other times", rel_error(x_jumped, x_u), EXACT))
    return verdict(*measured)


def _on_the_way(case: Case, eps: Tensor, t: Tensor) -> Tensor:
    """Where the flow from ``eps`` is at ``t``; it goes straight where pairs are trained on."""
    if case.makes_pairs:
        return case.path.mix(case.paired_data(eps), eps, t)
    return case.flow.map(case.path.start(eps), torch.full_like(t, case.path.t_max), t)


def samples(case: Case) -> Result:
    """The ideal network's samples are the data, exactly or with the order of a solver."""
    if case.optimum is None:
        return None, NO_OPTIMUM
    noise, t_max = case.noise(64, 0), case.path.t_max
    data = _on_the_way(case, noise, noise.new_zeros(64))
    if case.objective.jump_range == "ode":
        return _converging(case, noise, data)
    irregular = [t_max, 0.65 * t_max, 0.3 * t_max, 0.0]
    several: list[int | list[float]] = [2, 4, irregular]
    schedules = [1, *several] if case.objective.jump_range == "any" else [1]
    measured = []
    if case.makes_pairs:
        error = rel_error(case.paired_data(noise), STD * noise)
        measured.append(("what noise is paired with", error, 0.25))
    for steps in schedules:
        detail = f"{steps} steps" if isinstance(steps, int) else "an irregular schedule"
        measured.append((detail, rel_error(case.sample(case.optimum, noise, steps), data), EXACT))
    if case.objective.jump_range == "to_data":
        many = case.noise(MANY, 1, (1,))
        for steps in several:
            drawn = case.sample(case.optimum, many, steps, 2)
            detail = f"spread after {steps if isinstance(steps, int) else 'irregular'} steps"
            measured.append((detail, abs(float(drawn.std()) / STD - 1), 0.01))
        first, other = (case.sample(case.optimum, noise, 2, seed) for seed in (1, 2))
        require(not torch.equal(first, other), "two steps use no fresh noise")
    return verdict(*measured)


def _converging(case: Case, noise: Tensor, data: Tensor) -> Result:
    errors = [rel_error(case.sample(case.test_net, noise, steps), data) for steps in FINE]
    if max(errors) < 1e-3:
        return verdict((f"error at {FINE[0]} steps and more", max(errors), 1e-3))
    orders = torch.tensor(errors).log2().diff().neg()
    error = f"error {errors[-1]:.1g} at {FINE[-1]} steps"
    return verdict((f"{error}; 1 - order", 1 - float(orders.min()), 0.1))


def velocity(case: Case) -> Result:
    """What the objective would teach: dx_t/dt of the data it was trained on."""
    if not case.objective.can_teach:
        return None, "it learns no velocity"
    if case.optimum is None:
        return None, NO_OPTIMUM
    t = case.path.t_max * torch.linspace(0.01, 1, 64, dtype=torch.float64)
    eps = case.noise(64, 0)
    if case.objective.needs_pairs:  # each x has one eps, so that the velocity is theirs
        x = case.paired_data(eps)
        x_t, expected = case.path.mix(x, eps, t), case.path.velocity(x, eps, t)
    else:
        x_t, expected = eps, case.flow.velocity(eps, t)
    error = rel_error(case.objective.velocity(case.optimum, x_t, t, None), expected)
    return verdict(("off by", error, EXACT))


def network_calls(case: Case) -> Result:
    """One call a step, where a step is a jump; detail where it is a solver's."""
    counts = []
    for steps in (1, 2, 4):
        record = CallRecorder(case.test_net)
        case.sample(record, case.noise(4, 0), steps)
        counts.append(len(record.calls))
    detail = f"{', '.join(map(str, counts))} at 1, 2, 4 steps"
    if case.objective.jump_range == "ode":
        return min(counts) > 0, detail
    return counts == [1, 2, 4], detail


def labels(case: Case) -> Result:
    """Conditions reach the network row by row, in training and sampling.

    They may be classes, vectors or None.
    """
    rows = 64
    for y in (torch.arange(rows) % 10, case.noise(rows, 5, (3,)), None):
        for what in ("loss", "sampler"):
            record = CallRecorder(nonlinear_test_net)
            if what == "loss":
                nets = case.nets(record, record, record)
                case.loss(nets, case.batch(rows, 0, y=y), 0)
            else:
                case.sample(record, case.noise(rows, 0), 3, y=y)
            given = [(c.x, c.y) for c in record.calls if c.y is not None]
            if y is None:
                require(not given, f"the {what} gives labels where there are none")
                continue
            require(bool(given), f"the {what} does not give the network its labels")
            for x, its in given:
                right = len(its) == len(x) and (len(x) != rows or torch.equal(its, y))
                require(right, f"the {what} gives the network other labels")
    return True, "given to the network by loss and sampler"


def determinism(case: Case) -> Result:
    """Loss and samples are fixed by their generator, bit for bit; torch's own is left alone."""

    batch, noise, net = case.batch(64, 0), case.noise(64, 0), nonlinear_test_net
    nets = case.nets(net, net, net)  # what is learned along with them draws its weights here

    def drawn(seed: int) -> list[Tensor]:
        loss = case.loss(nets, batch, seed).per_sample.detach()
        return [loss, case.sample(net, noise, 3, seed)]

    before, x, kept = torch.random.get_rng_state(), batch.x.clone(), noise.clone()
    first = drawn(1)
    untouched = torch.equal(batch.x, x) and torch.equal(noise, kept)
    require(untouched, "the batch or the noise was overwritten")
    require(torch.equal(before, torch.random.get_rng_state()), "torch's global generator was used")
    require(all(map(torch.equal, first, drawn(1))), "the same generator gives other numbers")
    require(not torch.equal(first[0], drawn(2)[0]), "another generator gives the same loss")
    return True, "bit for bit under one generator"
