"""What a metric is: a number made of the samples' features and the reference's."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.experiments.extractors.base import MAIN
from fewstep.experiments.metrics.reference import Reference
from fewstep.registry import Registry

Array = NDArray[np.float64]
Better = Literal["lower", "higher", "neither"]
Against = Literal["moments", "rows", "train", "nothing"]


@dataclass(frozen=True)
class Value:
    """``error``: the standard error of ``value`` over draws of the samples, where it is known."""

    value: float
    error: float | None = None


class Metric(Protocol):
    """A frozen dataclass of settings; all of them are part of the metric's identity.

    ``name`` is what a table calls it. ``better`` says which values are good. ``against`` is what
    it compares samples with: the ``moments`` of all references, as many ``rows`` of them as there
    are samples, the ``train`` split, beside which it looks at the held-out one, or ``nothing``.

    One that is not of an extractor's main features has a ``layer`` that says of which
    (``extractors.base``).
    """

    name: ClassVar[str]
    better: ClassVar[Better]
    against: ClassVar[Against]

    def measure(self, x: Array, reference: Reference) -> Value:
        """The value of samples with features ``x`` (N, D); ``UserError`` where they are too few."""
        ...


METRICS: Registry[Metric] = Registry("metric", "fewstep.metrics")


def layer_of(metric: Metric) -> str:
    """Which layer of an extractor ``metric`` is of."""
    return str(getattr(metric, "layer", MAIN))


def check_samples(name: str, needed: int, *counts: int) -> None:
    """Raise unless all ``counts`` are at least ``needed``."""
    if min(counts) < needed:
        raise UserError(f"{name} needs at least {needed} samples and references, got {counts}")
