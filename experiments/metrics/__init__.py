"""What samples are measured by: one file per family of metrics."""

from fewstep.experiments.metrics.base import METRICS, Metric, Value
from fewstep.experiments.metrics.frechet import FD, FDInf, at_infinity, bias_curve
from fewstep.experiments.metrics.kid import KID
from fewstep.experiments.metrics.manifold import Coverage, Density, Precision, Recall
from fewstep.experiments.metrics.memorisation import Authenticity, Memorisation

__all__ = [
    "FD",
    "KID",
    "METRICS",
    "Authenticity",
    "Coverage",
    "Density",
    "FDInf",
    "Memorisation",
    "Metric",
    "Precision",
    "Recall",
    "Value",
    "at_infinity",
    "bias_curve",
]
