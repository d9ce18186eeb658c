"""Checks of the sampler, and of what loss and sampler have in common: labels, randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.objectives.conformance.case import (
    STD,
    Case,
    Recorder,
    Result,
    bent,
    g,
    gap,
    judged,
)
from fewstep.objectives.conformance.training import NO_IDEAL

EXACT = 1e-9
MANY = 100_000  # samples, whose standard deviation is good to 0.2%
FINE = (64, 128, 256)


def jumps(case: Case) -> Result:
    """One step of the ideal network follows the flow exactly, as far as ``reach`` goes."""
    if case.ideal is None:
        return None, NO_IDEAL
    reach, t_max, rows = case.objective.reach, case.path.t_max, 64
    if reach == "step":
        return None, "a step goes as far as the flow is straight"
    if reach == "once":
        return None, "only from t_max to the data: see the samples"
    eps = case.noise(rows, 0)
    t = t_max * torch.linspace(0.05, 1, rows, dtype=torch.float64)
    u = 0.9 * t * torch.rand(rows, generator=g(1), dtype=torch.float64)
    x_t, x_u, x = (_on_the_way(case, eps, at) for at in (t, u, torch.zeros_like(t)))
    measures = [("to the data", gap(case.objective.denoise(case.ideal, x_t, t, None), x), EXACT)]
    if reach == "any":
        found = case.objective.jump(case.ideal, x_t, t, u, None)
        measures.append(("to other times", gap(found, x_u), EXACT))
    return judged(*measures)


def _on_the_way(case: Case, eps: Tensor, t: Tensor) -> Tensor:
    """Where the flow from ``eps`` is at ``t``; it goes straight where pairs are trained on."""
    if case.couples:
        return case.path.mix(case.coupled(eps), eps, t)
    return case.flow.map(case.path.start(eps), torch.full_like(t, case.path.t_max), t)


def samples(case: Case) -> Result:
    """The ideal network's samples are the data, exactly or with the order of a solver."""
    if case.ideal is None:
        return None, NO_IDEAL
    noise, t_max = case.noise(64, 0), case.path.t_max
    data = _on_the_way(case, noise, noise.new_zeros(64))
    if case.objective.reach == "step":
        return _converging(case, noise, data)
    irregular = [t_max, 0.65 * t_max, 0.3 * t_max, 0.0]
    several: list[int | list[float]] = [2, 4, irregular]
    schedules = [1, *several] if case.objective.reach == "any" else [1]
    measures = []
    if case.couples:
        measures.append(("what noise is paired with", gap(case.coupled(noise), STD * noise), 0.25))
    for steps in schedules:
        told = f"{steps} steps" if isinstance(steps, int) else "an irregular schedule"
        measures.append((told, gap(case.sample(case.ideal, noise, steps), data), EXACT))
    if case.objective.reach == "data":
        many = case.noise(MANY, 1, (1,))
        for steps in several:
            found = case.sample(case.ideal, many, steps, 2)
            told = f"spread after {steps if isinstance(steps, int) else 'irregular'} steps"
            measures.append((told, abs(float(found.std()) / STD - 1), 0.01))
        if torch.equal(case.sample(case.ideal, noise, 2, 1), case.sample(case.ideal, noise, 2, 2)):
            return False, "two steps use no fresh noise"
    return judged(*measures)


def _converging(case: Case, noise: Tensor, data: Tensor) -> Result:
    errors = [gap(case.sample(case.some, noise, steps), data) for steps in FINE]
    if max(errors) < 1e-3:
        return judged((f"error at {FINE[0]} steps and more", max(errors), 1e-3))
    orders = torch.tensor(errors).log2().diff().neg()
    error = f"error {errors[-1]:.1g} at {FINE[-1]} steps"
    return judged((f"{error}; 1 - order", 1 - float(orders.min()), 0.1))


def velocity(case: Case) -> Result:
    """What the objective would teach: dx_t/dt of the data it was trained on."""
    if not case.objective.teaches:
        return None, "it learns no velocity"
    if case.ideal is None:
        return None, NO_IDEAL
    t = case.path.t_max * torch.linspace(0.01, 1, 64, dtype=torch.float64)
    eps = case.noise(64, 0)
    if case.objective.needs_pairs:  # each x has one eps, so that the velocity is theirs
        x = case.coupled(eps)
        x_t, expected = case.path.mix(x, eps, t), case.path.velocity(x, eps, t)
        limit = EXACT
    else:
        x_t, expected, limit = eps, case.flow.velocity(eps, t), EXACT
    return judged(
        ("off by", gap(case.objective.velocity(case.ideal, x_t, t, None), expected), limit)
    )


def network_calls(case: Case) -> Result:
    """One call a step, where a step is a jump; told where it is a solver's."""
    counts = []
    for steps in (1, 2, 4):
        record = Recorder(case.some)
        case.sample(record, case.noise(4, 0), steps)
        counts.append(len(record.calls))
    told = f"{', '.join(map(str, counts))} at 1, 2, 4 steps"
    if case.objective.reach == "step":
        return min(counts) > 0, told
    return counts == [1, 2, 4], told


def labels(case: Case) -> Result:
    """Classes reach the network row by row, in training and sampling; None is allowed."""
    rows = 64
    for y in (torch.arange(rows) % 10, None):
        for what in ("loss", "sampler"):
            record = Recorder(bent)
            if what == "loss":
                nets = case.nets(record, record, record)
                case.loss(nets, case.batch(rows, 0, y=y), 0)
            else:
                case.sample(record, case.noise(rows, 0), 3, y=y)
            given = [(c.x, c.y) for c in record.calls if c.y is not None]
            if y is None and given:
                return False, f"the {what} gives labels where there are none"
            if y is not None and not given:
                return False, f"the {what} does not give the network its labels"
            for x, asked in given:
                if len(asked) != len(x) or (len(x) == rows and not torch.equal(asked, y)):  # type: ignore[arg-type]
                    return False, f"the {what} gives the network other labels"
    return True, "given to the network by loss and sampler"


def determinism(case: Case) -> Result:
    """Loss and samples are fixed by their generator, bit for bit; torch's own is left alone."""

    def drawn(seed: int) -> list[Tensor]:
        return [
            case.loss(nets, batch, seed).per_sample.detach(),
            case.sample(bent, noise, 3, seed),
        ]

    batch, noise, nets = case.batch(64, 0), case.noise(64, 0), case.nets(bent, bent, bent)
    before, x, kept = torch.random.get_rng_state(), batch.x.clone(), noise.clone()
    first = drawn(1)
    if not (torch.equal(batch.x, x) and torch.equal(noise, kept)):
        return False, "the batch or the noise was overwritten"
    if not torch.equal(before, torch.random.get_rng_state()):
        return False, "torch's global generator was used"
    if not all(torch.equal(a, b) for a, b in zip(first, drawn(1), strict=True)):
        return False, "the same generator gives other numbers"
    if torch.equal(first[0], drawn(2)[0]):
        return False, "another generator gives the same loss"
    return True, "bit for bit under one generator"
