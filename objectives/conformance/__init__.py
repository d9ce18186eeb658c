"""Checks of an objective: its loss and sampler against closed forms and calculus.

The data are N(0, 0.7^2 I), for which the flow, and so the network that each loss is smallest at
(``Objective.gaussian_optimum``), is known. Everything is computed in float64 unless said otherwise.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fewstep.deprecation import renamed
from fewstep.objectives.conformance import algebra, companion, sampling, training
from fewstep.objectives.conformance.case import Case, CheckFailed, Result
from fewstep.objectives.core.base import Objective

CHECKS: Mapping[str, Callable[[Case], Result]] = {
    "path": algebra.path,
    "tangents": algebra.tangents,
    "time domain": training.time_domain,
    "per-sample loss": training.rows,
    "gradients": training.gradients,
    "minimum at the optimum": training.stationary,
    "companion": companion.companion,
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
class CheckResult:
    """What a check found. ``passed`` is None where it does not apply; ``detail`` says why."""

    name: str
    passed: bool | None
    detail: str


def run_checks(objective: Objective, names: Iterable[str] = CHECKS) -> list[CheckResult]:
    """The results of all checks, or of those in ``names``; about two seconds for all.

    An objective that raises fails the check; the error is its detail.
    """
    case, results = Case(objective), []
    for name in names:
        try:
            with torch.random.fork_rng([]):  # what is learned along with a network draws weights
                passed, detail = CHECKS[name](case)
        except Exception as error:  # a third party's fault is a finding, not an end
            kind = "" if isinstance(error, CheckFailed) else f"{type(error).__name__}: "
            passed, detail = False, f"{kind}{error}"
        results.append(CheckResult(name, passed, " ".join(detail.split())))
    return results


__all__ = ["CHECKS", "CheckResult", "run_checks"]


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Finding": "CheckResult", "conform": "run_checks"})
