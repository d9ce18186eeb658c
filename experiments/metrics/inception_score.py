"""The Inception Score: how sure a classifier is of each sample, and how unlike samples are.

    IS = exp( mean_n KL( p(y | x_n) || q(y) ) ),   q(y) = mean_n p(y | x_n)

(Salimans et al. 2016, arXiv:1606.03498, sec. 4), by itself in each of a few parts of the samples,
of which the mean is reported. From 1, where all samples look alike to the classifier, to the number
of its classes. No reference is needed, so real images have a score, too: the floor.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import UserError, check_range
from fewstep.experiments.extractors.base import LOGITS
from fewstep.experiments.metrics.base import METRICS, Against, Array, Better, Value
from fewstep.experiments.metrics.reference import Reference


@METRICS.register("inception_score")
@dataclass(frozen=True)
class InceptionScore:
    """Mean of the Inception Scores of parts of the samples, with its standard error.

    Attributes:
        splits: parts, of consecutive samples: 5,000 in each of ten, of 50,000 (as ADM's evaluator).
        order: seed of NumPy's RandomState that shuffles the samples before (torch-fidelity takes
            2020); null for the order that they were drawn in, which is random already.
    """

    splits: int = 10
    order: int | None = None

    name: ClassVar[str] = "IS"
    better: ClassVar[Better] = "higher"
    against: ClassVar[Against] = "nothing"
    layer: ClassVar[str] = LOGITS

    def __post_init__(self) -> None:
        check_range("inception_score.splits", self.splits, 1)

    def measure(self, x: Array, reference: Reference) -> Value:
        return self.of(x)

    def of(self, logits: Array) -> Value:
        """Of logits (N, classes); ``UserError`` for fewer samples than parts."""
        n, k = len(logits), self.splits
        if n < k:
            raise UserError(f"IS in {k} splits needs at least {k} samples, got {n}")
        if self.order is not None:
            logits = logits[np.random.RandomState(self.order).permutation(n)]
        scores = [_score(logits[i * n // k : (i + 1) * n // k]) for i in range(k)]
        error = float(np.std(scores, ddof=1) / np.sqrt(k)) if k > 1 else None
        return Value(float(np.mean(scores)), error)


def _score(logits: Array) -> float:
    from scipy.special import log_softmax, logsumexp  # slow to import, as in memorisation.py

    log_p = log_softmax(logits, axis=1)
    log_q = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return float(np.exp(divergence.mean()))
