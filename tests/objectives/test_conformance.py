"""Every registered objective keeps its word, and ``run_checks`` sees those that do not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from fewstep.objectives import (
    AYFEMD,
    AYFLMD,
    CTM,
    FACM,
    IMM,
    OBJECTIVES,
    SCD,
    TVM,
    AlphaFlow,
    Batch,
    Consistency,
    ConsistencyDistillation,
    DecoupledMeanFlow,
    FlowMatching,
    ImprovedMeanFlow,
    LiveReflow,
    Loss,
    MeanFlow,
    Net,
    Nets,
    Objective,
    Progress,
    Shortcut,
    TiM,
)
from fewstep.objectives.conformance import CHECKS, run_checks
from fewstep.objectives.conformance.case import END, TOTAL, CallRecorder, Case, nonlinear_test_net
from fewstep.objectives.core.batch_math import mean_square, rand, randn

TRIG_FLOW = FlowMatching(interpolant="trig", times="logit_normal", t_mean=-1.0, t_std=1.4)
OTHERS = {
    "flow_matching on TrigFlow": TRIG_FLOW,
    # those whose defaults have no known optimum, with settings that do
    "tim": TiM(cosine=0.0),
    "ayf_emd": AYFEMD(tangent_share=1.0),
    "ayf_lmd": AYFLMD(tangent_share=1.0),
    "ctm": CTM(levels=300),
    "imm": IMM(k=16.0),
}


EVERY = [(name, OBJECTIVES[name]) for name in OBJECTIVES.names()]
EVERY += [(f"{name}, other settings", objective) for name, objective in OTHERS.items()]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "objective"), EVERY, ids=[name for name, _ in EVERY])
def test_conformance(name: str, objective: Objective, check: str) -> None:
    (finding,) = run_checks(objective, [check])
    assert finding.passed is not False, finding.detail


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_ideal_is_given_by_every_objective_of_ours(name: str) -> None:
    assert Case(OTHERS.get(name, OBJECTIVES[name])).optimum is not None


# with the settings under which the online network is asked most
EVERY_WAY: list[Objective] = [
    *(OBJECTIVES[name] for name in OBJECTIVES.names()),
    TRIG_FLOW,
    Shortcut(target="online", bootstrap_guidance=2.0),
    Consistency(target="online"),
    ConsistencyDistillation(target="online", teacher_guidance=2.0),
    SCD(teacher_guidance=2.0),
    SCD(autoguidance=2.0),
    AYFLMD(autoguidance=2.0),
    MeanFlow(guidance=2.0, mixing=0.4),
    ImprovedMeanFlow(guidance=2.0),
    AlphaFlow(alpha=0.5, shift="network", guidance=2.0),
    LiveReflow(pair_guidance=2.0),
]


@pytest.mark.parametrize("objective", EVERY_WAY, ids=lambda o: o.title)
@pytest.mark.parametrize("labelled", [False, True])
def test_each_row_is_back_propagated_once(objective: Objective, labelled: bool) -> None:
    """No target carries gradients, and no row is trained twice or forgotten."""
    case, record = Case(objective), CallRecorder(nonlinear_test_net)
    for progress in (Progress(0, TOTAL), Progress(TOTAL // 2, TOTAL), END):
        record.calls.clear()
        y = torch.zeros(64, dtype=torch.int64) if labelled else None
        case.loss(case.nets(record, record, record), case.batch(64, 0, y=y), 0, progress)
        times = (
            2 if isinstance(objective, FACM | TVM | DecoupledMeanFlow) else 1
        )  # as a flow and as a jump
        times = 3 if isinstance(objective, CTM) else times  # and through what follows the jump
        assert sum(len(c.x) for c in record.calls if c.grad) == 64 * times


# ---- faults that must be found: (objective, the checks that fail) ------------------------------


class Backwards(FlowMatching):
    """Regresses minus the velocity."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        t, eps = rand(batch.x, g), randn(batch.x, g)
        F = nets.online(self.path.mix(batch.x, eps, t), t, y=batch.y)
        return Loss(mean_square(F + self.path.velocity(batch.x, eps, t)), t)


class Unlabelled(FlowMatching):
    """Forgets the labels."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        return super().loss(nets, Batch(batch.x), progress, g)


class Reduced(FlowMatching):
    """Returns one number, and a time outside of the domain."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().loss(nets, batch, progress, g)
        nets.online(batch.x, loss.t + 1)
        return Loss(loss.per_sample.mean(), loss.t)


class Careless(FlowMatching):
    """Draws from torch's own generator, in the default dtype."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        t, eps = torch.rand(len(batch.x)), torch.randn(batch.x.shape)
        F = nets.online(self.path.mix(batch.x, eps, t), t.double(), y=batch.y)
        return Loss(mean_square(F - self.path.velocity(batch.x, eps, t)), t)


class Halfway(Shortcut):
    """Jumps too short."""

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return super().jump(net, x_t, t, (t + u) / 2, y)


class Leaking(Consistency):
    """Gradients into the network behind, unshared noise, no re-noising."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        here, there = (super(Leaking, self).loss(nets, batch, progress, g) for _ in range(2))
        behind = nets.ema(batch.x, here.t).square().flatten(1).sum(1)
        return Loss(here.per_sample + there.per_sample + 0.1 * behind, here.t)

    def sample(self, net, noise, y, times, g):  # type: ignore[no-untyped-def]
        return self.jump_once(net, self.path.start(noise), y, times)

    def jump_once(self, net: Net, x: Tensor, y: Tensor | None, times: list[float]) -> Tensor:
        for t in times[:-1]:
            x = self.denoise(net, x, torch.full((len(x),), t, dtype=x.dtype), y)
        return x


@dataclass(frozen=True)
class Raising(FlowMatching):
    """Raises."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        raise RuntimeError("no loss\ntoday")


FAULTY: list[tuple[Objective, set[str]]] = [
    (Backwards(), {"minimum at the optimum"}),
    (Unlabelled(), {"labels"}),
    (Reduced(), {"time domain", "per-sample loss"}),
    (Careless(), {"determinism", "float32"}),
    (Halfway(), {"exact jumps", "exact samples"}),
    (Leaking(), {"gradients", "shared noise", "exact samples"}),
]


@pytest.mark.parametrize(("objective", "failing"), FAULTY, ids=lambda v: type(v).__name__)
def test_faults_are_found(objective: Objective, failing: set[str]) -> None:
    found = {f.name for f in run_checks(objective) if f.passed is False}
    assert failing <= found


def test_errors_are_findings() -> None:
    findings = {f.name: f for f in run_checks(Raising())}
    assert findings["path"].passed
    assert findings["gradients"].passed is False
    assert findings["gradients"].detail == "RuntimeError: no loss today"


def test_without_an_ideal_its_checks_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowMatching, "gaussian_optimum", Objective.gaussian_optimum)
    told = {f.name: f.detail for f in run_checks(FlowMatching()) if f.passed is None}
    assert (
        told["minimum at the optimum"] == told["exact samples"] == "no gaussian_optimum() is given"
    )
    assert not [f for f in run_checks(FlowMatching()) if f.passed is False]
