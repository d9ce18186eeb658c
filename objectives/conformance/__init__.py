"""Does an objective keep its word? Closed forms and calculus against loss and sampler.

The data are N(0, 0.7^2 I), for which the flow, and so the network that each loss is smallest at
(``Objective.ideal``), is known. Everything is computed in float64 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from fewstep.objectives.base import Objective
from fewstep.objectives.conformance import algebra, sampling, training
from fewstep.objectives.conformance.case import Case, Result

CHECKS: Mapping[str, Callable[[Case], Result]] = {
    "path": algebra.path,
    "tangents": algebra.tangents,
    "time domain": training.time_domain,
    "loss of each row": training.rows,
    "gradients": training.gradients,
    "least at the ideal": training.stationary,
    "shared noise": training.shared_noise,
    "exact jumps": sampling.jumps,
    "exact samples": sampling.samples,
    "velocity": sampling.velocity,
    "network calls": sampling.network_calls,
    "labels": sampling.labels,
    "determinism": sampling.determinism,
    "float32": training.float32,
}


@dataclass(frozen=True)
class Finding:
    """What a check found. ``held`` is None where it was not taken; ``told`` says why."""

    name: str
    held: bool | None
    told: str


def conform(objective: Objective, names: Iterable[str] = CHECKS) -> list[Finding]:
    """The findings of all checks, or of those in ``names``; about two seconds for all.

    An objective that raises fails the check; its error is told.
    """
    case, findings = Case(objective), []
    for name in names:
        try:
            with torch.random.fork_rng([]):  # what is learned along with a network draws weights
                held, told = CHECKS[name](case)
        except Exception as error:  # a third party's fault is a finding, not an end
            held, told = False, f"{type(error).__name__}: {error}"
        findings.append(Finding(name, held, " ".join(told.split())))
    return findings


__all__ = ["CHECKS", "Finding", "conform"]
