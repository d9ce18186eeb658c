"""Learning rates against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fewstep.errors import UserError
from fewstep.experiments.config.settings import Training
from fewstep.experiments.training.learning_rate import learning_rate


def rates(*steps: int, **settings: Any) -> list[float]:
    return [learning_rate(Training(**settings), step) for step in steps]


def test_constant_rate_after_a_linear_warm_up() -> None:
    assert rates(*range(6), steps=10, lr=4.0, warmup=3) == [1, 2, 3, 4, 4, 4]
    assert rates(0, lr=4.0) == [4.0]


def test_cosine_rate_falls_to_nothing() -> None:
    given = {"steps": 11, "lr": 2.0, "warmup": 1, "schedule": "cosine"}
    first, second, third, half, last = rates(0, 1, 4, 6, 11, **given)
    assert (first, second) == (1.0, 2.0)  # half of it: warming up
    assert half == pytest.approx(1.0)
    assert third == pytest.approx(1 + math.cos(0.3 * math.pi))
    assert last == pytest.approx(0)


@pytest.mark.parametrize("warmup", [0, 7, 100])
def test_without_decay_from_cosine_has_the_bits_that_it_always_had(warmup: int) -> None:
    training = Training(steps=61, lr=0.0017, warmup=warmup, schedule="cosine")
    for step in range(62):
        warm = min(1.0, (step + 1) / (warmup + 1))
        done = max(0, step - warmup) / max(1, 61 - warmup)
        assert learning_rate(training, step) == (0.0017 * warm * (1 + math.cos(math.pi * done)) / 2)


def test_linear_rate_is_a_line_to_nothing() -> None:
    assert rates(0, 1, 2, 6, 9, 10, steps=10, lr=8.0, warmup=2, schedule="linear") == pytest.approx(
        [8 / 3, 16 / 3, 8, 4, 1, 0]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_it_falls_from_where_it_is_told_to(schedule: str) -> None:
    given = {"steps": 20, "lr": 3.0, "warmup": 2, "schedule": schedule, "decay_from": 12}
    assert rates(1, 2, 11, 12, 16, 20, **given) == pytest.approx([2, 3, 3, 3, 1.5, 0])
    assert rates(13, **given)[0] < 3
    early = rates(
        2, steps=20, lr=3.0, warmup=5, schedule=schedule, decay_from=0
    )  # while warming up
    share = 0.9 if schedule == "linear" else (1 + math.cos(0.1 * math.pi)) / 2
    assert early == pytest.approx([3 * 3 / 6 * share])


def test_inverse_square_root_of_edm2() -> None:
    """lr / sqrt(max(t / t_ref, 1)), a run longer than t_ref or not."""
    given = {"steps": 1000, "lr": 6.0, "warmup": 2, "schedule": "inverse_sqrt", "decay_from": 100}
    assert rates(0, 99, 100, 400, 900, **given) == pytest.approx([2, 6, 6, 3, 2])
    assert rates(101, **given) == pytest.approx([6 / math.sqrt(1.01)], rel=1e-15)
    assert rates(*range(2, 10), **given | {"steps": 10}) == [6.0] * 8


def test_another_peak_has_the_same_schedule() -> None:
    training = Training(steps=10, lr=4.0, warmup=3, schedule="linear")
    for step in range(10):
        assert learning_rate(training, step, 1.0) == learning_rate(training, step) / 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"decay_from": 3},
            "training.decay_from=3 says when .* training.schedule=constant it does",
        ),
        (
            {"schedule": "inverse_sqrt"},
            "schedule=inverse_sqrt needs training.decay_from, its t_ref",
        ),
        ({"schedule": "inverse_sqrt", "decay_from": 0}, "decay_from must be at least 1, got 0"),
        ({"schedule": "linear", "decay_from": -1}, "decay_from must be at least 0, got -1"),
        (
            {"schedule": "cosine", "decay_from": 9, "steps": 9},
            "decay_from must be less than training.steps=9 with training.schedule=cosine, got 9",
        ),
        ({"schedule": "invers_sqrt"}, "did you mean 'inverse_sqrt'"),
        ({"auxiliary_lr": 0}, "auxiliary_lr must be greater than 0, got 0"),
    ],
)
def test_what_makes_no_schedule_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Training(**settings)
