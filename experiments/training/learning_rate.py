"""The learning rate of an update: a peak, a linear warm-up and a schedule."""

from fewstep.experiments.config.schedules import SCHEDULES
from fewstep.experiments.config.settings import Training


def learning_rate(training: Training, step: int, peak: float | None = None) -> float:
    """The rate of update number ``step``, counted from 0; ``peak``: other than ``training.lr``."""
    warm = min(1.0, (step + 1) / (training.warmup + 1))
    start = training.warmup if training.decay_from is None else training.decay_from
    fallen = SCHEDULES[training.schedule](step, start, training.steps)
    return (training.lr if peak is None else peak) * warm * fallen
