"""Are samples copies of training images? Nearest neighbours in the training split tell.

Always against the training split, and beside the held-out split, whatever the reference is. A
network that draws as the data were drawn comes as near to its training images as new real ones do.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.experiments.metrics.base import METRICS, Against, Array, Better, Value, check_samples
from fewstep.experiments.metrics.neighbours import nearest, radii
from fewstep.experiments.metrics.reference import Reference

# a squared distance between features that networks computed in float32, over their squared norm:
# below, it is rounding (1e-6 of the features) that tells the two apart
SAME = 1e-12


@METRICS.register("memorisation")
@dataclass(frozen=True)
class Memorisation:
    """P(a sample is nearer to the training split than a held-out real one): 0.5 without copying.

    Over all pairs, ties half: the Mann-Whitney statistic U / NM of Meehan et al. 2020
    (arXiv:2004.05675, sec. 3). Above 0.5 samples are near copies; below, far from all real images.
    """

    name: ClassVar[str] = "memorisation"
    better: ClassVar[Better] = "neither"
    against: ClassVar[Against] = "train"

    def measure(self, x: Array, reference: Reference) -> Value:
        return Value(self.of(x, reference.train, reference.unseen))

    def of(self, samples: Array, train: Array, unseen: Array) -> float:
        """Of feature sets (N, D), (M, D) and (L, D)."""
        check_samples(self.name, 1, len(samples), len(unseen))
        from scipy.stats import rankdata  # slow to import, and every command imports this module

        mine, theirs = nearest(samples, train)[1], nearest(unseen, train)[1]
        n, m = len(mine), len(theirs)
        ranks = rankdata([*mine, *theirs])[:n]
        farther = ranks.sum() - n * (n + 1) / 2  # pairs in which the sample is the farther one
        return float(1 - farther / (n * m))


@METRICS.register("authenticity")
@dataclass(frozen=True)
class Authenticity:
    """Share of samples that are no near copies (Alaa et al. 2022, arXiv:2102.08921, sec. 4.3).

    A sample is a copy when it is no farther from its nearest training image than any other training
    image is; and when it is at distance zero, for a training image may be there twice.
    """

    name: ClassVar[str] = "authenticity"
    better: ClassVar[Better] = "higher"
    against: ClassVar[Against] = "train"

    def measure(self, x: Array, reference: Reference) -> Value:
        train = reference.train
        reach = reference.kept(reference.trained("radii"), lambda: radii(train, 1))
        return Value(self.of(x, train, reach))

    def of(self, samples: Array, train: Array, reach: Array | None = None) -> float:
        """Of feature sets (N, D) and (M, D); ``reach``: the ``radii`` of the latter, if known."""
        check_samples(self.name, 2, len(train))
        reach = radii(train, 1) if reach is None else reach
        index, distance = nearest(samples, train)
        zero = SAME * np.vdot(train, train) / len(train)
        return float((distance > np.maximum(reach[index], zero)).mean())
