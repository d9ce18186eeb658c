"""The time of runs of which no finished run tells anything, computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.cli.app import main
from fewstep.errors import UserError
from fewstep.experiments.cost import devices
from fewstep.experiments.run import run
from fewstep.sweeps.plan import Plan, plan

MLP_FLOPS = 2 * (128 * 16 + 16**2 + 2 * 2 * 16 + 5 * 16**2)  # of a pass: two numbers, width 16
SWEEP = """
base:
  data: gaussians
  backbone: mlp
  backbone.width: 16
  backbone.depth: 1
  training.steps: 1000
  training.batch_size: 50
  training.validate_every: 400
  training.precision: bfloat16
  evaluation.steps: [1, 4]
  evaluation.samples: 30
  evaluation.extractor: raw
axes:
  objective:
    - flow_matching
    - {objective: consistency_distillation, teacher: flow_matching}
    - {objective: reflow, teacher: flow_matching, objective.pairs: 70, objective.pair_steps: 5}
"""


@pytest.fixture
def planned(write: Callable[..., object], tmp_path: Path) -> Callable[..., Plan]:
    def make(*overrides: object, text: str = SWEEP) -> Plan:
        sweep = write(text).with_overrides([("runs", str(tmp_path / "runs")), *overrides])  # type: ignore[attr-defined]
        return plan(sweep, view=True)

    return make


def by_label(made: Plan, values: dict[str, float]) -> dict[str, float]:
    return {
        r.member.choices["objective"]: values[r.directory.key]
        for r in made.runs
        if r.directory.key in values
    }


def test_by_hand(planned: Callable[..., Plan]) -> None:
    """1000 steps and 3 validations of 4 batches; 30 samples in 1 and 4 steps; 70 pairs in 5."""
    made = planned("resources.device=h100", "resources.gpus=2")
    half, full = 0.35 * 989.4e12, 0.6 * 66.9e12
    rows, checks = 1000 * 50, 3 * 4 * 50
    training = {  # passes: 3 for a step of flow matching; distillation asks for 3 more
        "flow_matching": (rows * 3 + checks * 1) / half,
        "consistency_distillation": (rows * 6 + checks * 4) / half,
        "reflow": (rows * 3 + checks * 1) / half + 70 * 5 / full,
    }
    sampling = 30 * (1 + 4) / full
    estimate = made.full_estimate
    evaluation = by_label(made, dict(estimate.evaluation))
    assert evaluation == pytest.approx(dict.fromkeys(training, sampling * MLP_FLOPS / 2))
    seconds = {name: (s + sampling) * MLP_FLOPS / 2 for name, s in training.items()}
    assert by_label(made, dict(estimate.seconds)) == pytest.approx(seconds)
    # the teacher counts once, whoever learns from it
    total = (sum(training.values()) + 3 * sampling) * MLP_FLOPS / 3600
    assert estimate.gpu_hours == pytest.approx(total)
    assert estimate.hours == pytest.approx(total / 2)
    assert estimate.evaluation_gpu_hours == pytest.approx(3 * sampling * MLP_FLOPS / 3600)
    assert estimate.basis == [
        "3 from FLOPs at 35% of H100's 989 TFLOP/s (bfloat16), sampling at 60% of 66.9 (float32)"
    ]
    assert len(estimate.at_least) == 3  # a step takes less than a kernel's launch
    again = planned("resources.device=h100", "resources.gpus=2", "training.microbatch=10")
    more = rows * MLP_FLOPS / half / 2  # each network call is computed again
    assert by_label(again, dict(again.full_estimate.seconds)) == pytest.approx(
        {name: s + more for name, s in seconds.items()}
    )


def test_this_machines_processor(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def peak(precision: str, threads: int) -> float:
        asked.append((precision, threads))
        return 80e9

    monkeypatch.setattr(devices, "cpu_peak", peak)
    made = planned("objective=flow_matching", "resources.device=cpu", "training.precision=float32")
    estimate = made.full_estimate
    passes = 1000 * 50 * 3 + 3 * 4 * 50 + 30 * 5
    assert 3600 * estimate.hours == pytest.approx(passes * MLP_FLOPS / (0.45 * 80e9))
    assert estimate.gpu_hours == 0
    assert not estimate.at_least
    assert estimate.basis == ["1 from FLOPs at 45% of this CPU's 80 GFLOP/s (1 thread)"]
    assert set(asked) == {("float32", 1)}


def test_measured_speeds_win_where_they_are_of_that_device(planned: Callable[..., Plan]) -> None:
    short = ("training.steps=5", "training.precision=float32", "evaluation.samples=2")
    first = planned("objective=flow_matching", *short)
    first.write()
    result = run(first.runs[0].directory)
    more = ("training.steps=50", "training.precision=float32", "evaluation.steps=[]")
    made = planned(*more)
    assert dict(made.full_estimate.seconds) == dict(made.estimate.seconds)
    rate = result["images_per_second"]
    assert by_label(made, dict(made.estimate.seconds))["flow_matching"] == pytest.approx(
        50 * 50 / rate
    )
    assert made.full_estimate.basis == [
        "1 from 1 finished run of the same objective, backbone and data",
        "2 from 1 finished run of other objectives, scaled by the cost of a step",
    ]
    on_gpu = planned(*more, "resources.device=a100")
    assert on_gpu.estimate.unknown == 3
    assert on_gpu.full_estimate.basis == ["3 from FLOPs at 60% of A100's 19.5 TFLOP/s (float32)"]
    record = first.runs[0].directory.result()
    assert record is not None
    record["provenance"] |= {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB"}
    first.runs[0].directory.write("result", record)
    assert planned(*more, "resources.device=a100").full_estimate.unknown == 0
    assert not planned(*more, "resources.device=h100").estimate.seconds
    assert planned(*more, "resources.device=a100").full_estimate.basis == made.full_estimate.basis


def test_a_gpu_that_nothing_names(planned: Callable[..., Plan]) -> None:
    estimate = planned("resources.gpus=1").full_estimate
    assert (estimate.unknown, dict(estimate.seconds)) == (3, {})
    reason = "name the GPU with resources.device (choices: a100, h100, h200, l40s, rtx4090, cpu)"
    assert dict(estimate.reasons) == {reason: 3}


LATENTS = """
base:
  data: latents
  data.folder: far_away
  data.expected: 4x8x8 classes=10 train=2000 test=500
  backbone: dit_digits
  training.precision: bfloat16
  evaluation.extractor: raw
axes: {objective: [flow_matching, shortcut]}
resources: {gpus: 4, hours: 12, device: l40s}
"""


def test_a_plan_before_the_data_are_there_shows_its_costs_last(
    write: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(LATENTS)
    words = ["fewstep", "sweep", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path / "runs")]

    def said(*more: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", [*words, f"data.root={tmp_path}", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    code, out, _ = said("--plan")
    assert code == 0
    lines = out.splitlines()[4:]
    missing = f"no latents in {tmp_path}/far_away: it has no manifest.json"
    starts = [
        "resources of each run: 4 L40S GPUs, 1 CPU, 12 h",
        f"data not loaded, costs are of their shapes: {missing}",
        "estimate: at least ",
        "  ",
        "  2 from FLOPs at 35% of L40S's 362 TFLOP/s (bfloat16), sampling at 60% of 91.6 (float32)",
        "  at least: steps of 2 runs are too small to fill a GPU, and take longer",
        "disk: 17 MB, at most 8.72 MB a run",
        "  checkpoints 16.2 MB, samples 786 kB, and the data's cache 5.14 MB",
        f"run directories: {tmp_path}/runs/mine",
        "nothing was started",
        "a launch here would be refused",
    ]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False)), lines
    assert "GPU-hours: " in lines[3]
    decoded = "evaluation.extractor={name: decoded, autoencoder: far_away}"
    assert "  decoding the samples of 2 runs is not counted" in said("--plan", decoded)[1]
    for more in ([], ["--plan", "data.expected=''"]):
        code, _, err = said(*more)
        assert code == 2
        assert err.startswith(f"error: {missing}")
        assert len(err.splitlines()) == 1
        assert ("data.expected" in err) == bool(more)
    assert not (tmp_path / "runs").exists()


def test_a_plan_without_the_weights_of_an_extractor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "--runs", str(tmp_path), "evaluation.extractor=inception"]
    for more, code in ((["--plan"], 0), ([], 2)):
        monkeypatch.setattr("sys.argv", ["fewstep", "sweep", *words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        shown = capsys.readouterr()
        assert "extractor inception needs its weights" in (shown.err if code else shown.out)
    assert not list(tmp_path.iterdir())


def test_bad_expectations(planned: Callable[..., Plan]) -> None:
    for bad in ("4x32x32", "train=5 test=5", "4x0x8 train=5 test=5", "8x8 train=0 test=1"):
        with pytest.raises(UserError, match=r"data.expected must be like '4x32x32 classes=1000"):
            planned(("data.expected", bad), text=LATENTS)
