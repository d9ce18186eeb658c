"""How long runs will take: from real finished runs, by their own numbers."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from helpers.commands import TINY

from fewstep.experiments.run import Interrupted, run
from fewstep.experiments.worker import ProgressFile
from fewstep.objectives import OBJECTIVES
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.plan import Plan, longest_first, plan

STEPS = 40
SWEEP = """
axes:
  objective: [flow_matching, scm]
  backbone.width: [16, 24]
seeds: 3
"""


@pytest.fixture
def planned(tmp_path: Path):
    def make(*overrides: object, text: str = SWEEP) -> Plan:
        (tmp_path / "s.yaml").write_text(text)
        base = [f"training.steps={STEPS}", "evaluation.steps=[1,4]", "evaluation.samples=50"]
        root = ("runs", str(tmp_path / "runs"))
        tiny = [o for o in TINY if "width" not in o]
        made = definition.load(str(tmp_path / "s.yaml")).with_overrides(
            [*tiny, *base, root, *overrides]
        )
        return plan(made)

    return make


def finish(made: Plan, **choices: str) -> list[dict]:
    """Train the planned runs with these choices; their results."""
    made.write()
    chosen = [r for r in made.runs if choices.items() <= r.member.choices.items()]
    return [run(r.directory) for r in chosen]


def by_choice(made: Plan) -> dict[tuple[str, ...], float | None]:
    return {
        (*r.member.choices.values(), str(r.member.seed)): made.estimate.seconds.get(r.directory.key)
        for r in made.runs
    }


def test_without_finished_runs_nothing_is_known(planned):
    made = planned()
    assert made.estimate.seconds == {}
    assert (made.estimate.unknown, made.estimate.hours, made.estimate.gpu_hours) == (12, 0, 0)
    assert made.to_do == made.runs


def test_a_run_takes_as_long_as_the_finished_ones_of_its_kind(planned):
    first = planned("seeds=2")
    results = finish(first, objective="scm", **{"backbone.width": "16"})
    made = planned(f"training.steps={10 * STEPS}", "training.batch_size=8", "evaluation.steps=[]")
    rate = median(r["images_per_second"] for r in results)
    scm = 8 * 10 * STEPS / rate
    ratio = OBJECTIVES["flow_matching"].step_cost() / OBJECTIVES["scm"].step_cost()
    found = by_choice(made)
    for seed in "012":
        assert found["scm", "16", seed] == pytest.approx(scm)
        assert found["flow_matching", "16", seed] == pytest.approx(scm * ratio)
        assert found["scm", "24", seed] is found["flow_matching", "24", seed] is None
    assert made.estimate.unknown == 6
    assert made.estimate.hours == pytest.approx(3 * (scm + scm * ratio) / 3600)
    assert sorted(made.estimate.basis) == [
        "3 from 2 finished runs of other objectives, scaled by the cost of a step",
        "3 from 2 finished runs of the same objective, backbone and data",
    ]
    # the unknown first, in the sweep's order; then the longest
    assert [r.directory.key for r in made.to_do] == [
        r.directory.key
        for width, objective in [("24", None), ("16", "scm"), ("16", "flow_matching")]
        for r in made.runs
        if r.member.choices["backbone.width"] == width
        and r.member.choices["objective"] in (objective or r.member.choices["objective"])
    ]


def test_settings_of_an_objective_that_cost_more_are_counted(planned):
    text = "base: {objective: shortcut}\naxes: {objective.bootstrap_share: [0.25, 0.75]}"
    width = "backbone.width=16"
    first = planned(width, text=text)
    (done,) = finish(first, **{"objective.bootstrap_share": "0.25"})
    made = planned(width, "evaluation.steps=[]", text=text)
    images = STEPS * 16
    factor = (3 + 2 * 0.75) / (3 + 2 * 0.25)  # Shortcut.step_cost
    assert by_choice(made)["0.75", "0"] == pytest.approx(
        images / done["images_per_second"] * factor
    )


def test_evaluation_is_counted_by_sampling_steps_and_cells(planned):
    chosen = ("objective=scm", "backbone.width=16", "seeds=1")
    (result,) = finish(planned(*chosen))
    asked = "evaluation.steps=[1,4,8,16]"
    made = planned(*chosen, asked)
    assert made.counts()["cells"] == 1
    cells = made.runs[0].directory.cells().values()
    sampling = sum(cell["seconds"] for cell in cells)
    beside = result["evaluate_seconds"] - sampling  # the extractor, the distances
    expected = sampling * (8 + 16) / (1 + 4) + 2 * beside / 2
    assert by_choice(made)["scm", "16", "0"] == pytest.approx(expected)


def test_an_interrupted_run_has_less_to_do(planned):
    chosen = ("objective=scm", "backbone.width=16", "evaluation.steps=[]")
    finish(planned(*chosen, "seeds=1"))
    made = planned(*chosen, "seeds=2")
    made.write()
    half = made.runs[1].directory
    whole = made.estimate.seconds[half.key]
    with pytest.raises(Interrupted):
        run(half, lambda: half.progress() is not None, ProgressFile(half))
    done = half.progress()["done"]
    assert 0 < done < STEPS
    again = planned(*chosen, "seeds=2")
    assert again.counts()["interrupted"] == 1
    assert again.estimate.seconds[half.key] == pytest.approx((1 - done / STEPS) * whole)
    half.write("progress", {"phase": "evaluate", "done": 1, "total": 2})
    assert planned(*chosen, "seeds=2").estimate.seconds[half.key] == 0


def test_what_asks_for_a_gpu_is_not_told_by_a_cpu(planned):
    chosen = ("objective=scm", "backbone.width=16")
    finish(planned(*chosen, "seeds=1"))
    assert planned(*chosen, "resources.gpus=4").estimate.unknown == 2
    done = next(r.directory for r in planned(*chosen).runs if r.state == "cached")
    result = done.result()
    result["provenance"]["device"] = "cuda:0"
    done.write("result", result)
    alone, four = planned(*chosen), planned(*chosen, "resources.gpus=4", "resources.nodes=2")
    assert alone.estimate.gpu_hours == pytest.approx(alone.estimate.hours)
    assert four.estimate.gpu_hours == pytest.approx(8 * four.estimate.hours)


def test_a_finished_run_that_cannot_be_understood_any_more_is_passed_over(planned):
    chosen = ("backbone.width=16", "seeds=1")
    finish(planned(*chosen), objective="scm")
    done = next(r.directory for r in planned(*chosen).runs if r.state == "cached")
    spec = done.spec()
    spec["config"]["objective"]["name"] = "of_a_package_that_is_gone"
    done.write("spec", spec)
    assert planned("objective=flow_matching", *chosen).estimate.unknown == 1


def test_teachers_come_first_and_count_with_their_students(planned):
    text = """
axes:
  objective:
    - {objective: scd, teacher: teacher, label: student, training.warmup: 0}
    - {objective: flow_matching, label: middle, training.warmup: 1}
    - {objective: flow_matching, label: teacher, training.warmup: 2}
    - {objective: flow_matching, label: short, training.warmup: 3}
"""
    made = planned("backbone.width=16", text=text)
    keys = {r.member.choices["objective"]: r.directory.key for r in made.runs}
    names = {key: name for name, key in keys.items()}

    def order(**seconds: float) -> list[str]:
        told = {keys[name]: value for name, value in seconds.items()}
        return [names[r.directory.key] for r in longest_first(made.runs, told)]

    assert order() == ["teacher", "student", "middle", "short"]
    assert order(student=30, middle=25, teacher=5, short=6) == [
        "teacher", "student", "middle", "short"]  # fmt: skip
    assert order(student=3, middle=25, teacher=5, short=6) == [
        "middle", "teacher", "short", "student"]  # fmt: skip
    assert order(student=30, teacher=5, short=6) == ["middle", "teacher", "student", "short"]
    assert order(middle=9, teacher=5, short=6) == ["teacher", "student", "middle", "short"]
