"""Runs that start from another run's weights: exact across paths, and told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny, trainer
from torch import Tensor, nn

from fewstep.backbones import BACKBONES, build_backbone
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import Override, RunConfig
from fewstep.experiments.rng import generator
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.initialisation import NetworkForm, fill, own_form, taken_over
from fewstep.experiments.training.network import add_augmentation, build_network, load_network
from fewstep.experiments.training.teacher import check_teacher, network_form
from fewstep.objectives import (
    OBJECTIVES,
    SCM,
    Batch,
    GaussianFlow,
    LinearPath,
    Nets,
    Progress,
    TrigPath,
)
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.converted_network import ConvertedNetwork
from fewstep.objectives.core.paths import convert_path
from fewstep.registry import build

TRIG: list[Override] = ["objective.interpolant=trig", "objective.sigma_d=0.7"]
TEACHERS: dict[str, list[Override]] = {
    "linear": [],
    "trig": TRIG,
    "shortcut": ["objective=shortcut"],
    "scm": ["objective=scm"],
}
CANNOT = {
    ("shortcut", "live_reflow"): "its d means something else",
    ("shortcut", "facm"): "its d means something else",
    ("shortcut", "facm_distillation"): "its d means something else",
    ("shortcut", "ctm"): "jumps cannot be taken over",
    ("shortcut", "shortcut_kvfrans"): "jumps cannot be taken over",
}
# noise is given to it at another time than noise's own
AS_A_FLOW: dict[str, list[Override]] = {
    "sid": ["objective.input_time=1"],
    "dmd2": ["objective.input_time=1"],
}
POINTS = 1000


def noisy(network: nn.Module) -> nn.Module:
    """``network`` in float64, with weights of which none is 0: as after training."""
    g = torch.Generator().manual_seed(1)
    network = network.double().eval()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    return network


def taken(config: RunConfig, teacher: RunConfig) -> tuple[nn.Module, nn.Module]:
    """The teacher's network, and the one that a run of ``config`` begins with."""
    dataset, form = config.data.load(), taken_over(config, "a", teacher, own_form(teacher))
    source = noisy(build_network(teacher, dataset))
    network = build_network(config, dataset, form).double().eval()
    fill(network, source, "a")
    return source, network


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("kind", TEACHERS)
def test_the_students_first_denoiser_is_the_teachers(tmp_path: Path, kind: str, name: str) -> None:
    """At the same x and eps, whatever the paths; and gradients reach every weight."""
    teacher = tiny(tmp_path, *TEACHERS[kind])
    own_settings = AS_A_FLOW.get(name, [])
    config = tiny(tmp_path, f"objective={name}", *own_settings, "training.init=teacher")
    if (kind, name) in CANNOT:
        with pytest.raises(UserError, match=CANNOT[kind, name]):
            taken(config, teacher)
        return
    source, network = taken(config, teacher)
    own, its = config.objective, teacher.objective
    g = torch.Generator().manual_seed(2)
    x, eps = (torch.randn(POINTS, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t = own.path.t_max * torch.rand(POINTS, generator=g, dtype=torch.float64).clamp(
        1 / 64
    )  # a shortcut does not tell shorter jumps from its flow
    y = torch.randint(11, (POINTS,), generator=g)
    x_t = own.path.mix(x, eps, t)
    x_s, s = convert_path(x_t, t, own.path, its.path)
    if its.can_teach and not (own.uses_jump and its.uses_jump):
        data, noise = its.path.data_and_noise(x_s, its.velocity(source, x_s, s, y), s)
    else:  # by the jump to the data
        data = its.denoise(source, x_s, s, y)
        alpha, sigma = (expand(c(s), x) for c in (its.path.alpha, its.path.sigma))
        noise = (x_s - alpha * data) / (sigma * its.path.noise_std)
    expected = own.path.mix(data, noise, 0 * t)  # the published shortcut leaves a little noise
    estimate = own.denoise(network, x_t, t, y)
    torch.testing.assert_close(estimate, expected, rtol=1e-9, atol=1e-9)
    estimate.square().sum().backward()
    untouched = {n for n, p in network.named_parameters() if not p.grad.abs().sum()}  # type: ignore[union-attr]
    assert not untouched


@pytest.mark.parametrize("setting", ["jump_blocks=1", "jump_embedding=linear"])
def test_settings_of_jumps_mean_nothing_to_a_flow(tmp_path: Path, setting: str) -> None:
    asked: list[Override] = ["objective=mean_flow", "training.init=teacher", f"backbone.{setting}"]
    deep: Override = ("backbone.depth", 2)
    source, network = taken(tiny(tmp_path, *asked, deep), tiny(tmp_path, deep))
    x, t = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.full((8,), 0.7).double()
    y = torch.arange(8)
    torch.testing.assert_close(network(x, t, 0 * t, y), source(x, t, y=y))
    with pytest.raises(UserError, match="has jump_"):  # another network's d
        taken(tiny(tmp_path, *asked, deep), tiny(tmp_path, "objective=mean_flow", deep))


def test_a_jump_embedding_that_says_nothing_yet_learns_in_all_its_weights(tmp_path: Path) -> None:
    _, network = taken(tiny(tmp_path, "objective=mean_flow"), tiny(tmp_path))
    x, t = torch.randn(64, 1, 8, 8, dtype=torch.float64), torch.full((64,), 0.7).double()
    d = torch.linspace(0, 0.7, 64, dtype=torch.float64)
    y = torch.arange(64) % 11

    def effect() -> Tensor:
        return network(x, t, d, y) - network(x, t, 0 * d, y)

    assert effect().abs().max() < 1e-12
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (network(x, t, d, y) - expand(d, x)).square().mean().backward()
        optimiser.step()
    assert effect().abs().max() > 1e-3
    first = network.get_submodule("condition.jump.1").weight
    assert not torch.allclose(first[: len(first) // 2], first[len(first) // 2 :])


@pytest.mark.parametrize("source", [LinearPath(), TrigPath(0.7)], ids=["linear", "trig"])
def test_scm_at_r_0_is_at_its_minimum_when_it_starts_from_the_flow_of_gaussian_data(
    source: LinearPath | TrigPath,
) -> None:
    """There the loss matches velocities: its gradient vanishes, but for the scatter of samples."""
    flow = GaussianFlow(source, 0.8)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, d: None = None, y: None = None) -> Tensor:
            v = flow.velocity(source.noise_std * x, t) / source.noise_std
            return self.scale * v

    objective = SCM(sigma_d=0.5, tangent_norm=1e9)  # no normalisation, of one factor
    slopes = []
    for scale in (1.0, 2.0):
        inner = Exact()
        network = ConvertedNetwork(inner, source, objective.path)
        with torch.no_grad():
            inner.scale.fill_(scale)
        g = torch.Generator().manual_seed(0)
        x = 0.8 * torch.randn(200_000, 1, generator=g, dtype=torch.float64)
        loss = objective.loss(
            Nets(network, auxiliary=objective.auxiliary_module()),
            Batch(x), Progress(0, 10**6), generator(0, "train", 0),
        )  # fmt: skip
        loss.per_sample.mean().backward()
        assert inner.scale.grad is not None
        slopes.append(float(inner.scale.grad) * 1e9)
    assert abs(slopes[0]) < abs(slopes[1]) / 20


def test_a_chain_of_stages_resumes_and_is_evaluated_without_those_before(tmp_path: Path) -> None:
    flow = prepare(tiny(tmp_path, "training.steps=2"))
    run(flow)
    asked: list[Override] = ["objective=scd", ("teacher", str(flow.path)), "training.init=teacher"]
    second = prepare(tiny(tmp_path, *asked, "training.steps=2"))
    run(second)
    third = tiny(tmp_path, "objective=ect", ("teacher", str(second.path)), "training.init=teacher")
    made = trainer(third)
    assert isinstance(made.net, ConvertedNetwork)
    assert not isinstance(made.net.network, ConvertedNetwork)  # one change of path, not two
    assert made.net.source == LinearPath()
    own = load_network(tiny(tmp_path, *asked, "training.steps=2"), made.dataset, second, "ema")
    x, t = torch.randn(16, 1, 8, 8), torch.linspace(0.1, 1.5, 16)
    torch.testing.assert_close(made.net(x, t), own(x, t))
    result = second.result()
    assert result is not None
    assert result["initialised"] == {
        "objective": tiny(tmp_path).values["objective"], "takes_d": False, "d": None,
        "run": flow.key, "title": "Flow matching",
    }  # fmt: skip
    assert second.first_weights() == result["initialised"]
    assert made.teacher is None  # it gave its weights, and teaches nothing
    shutil.rmtree(flow.path)
    assert trainer(third).form == made.form
    assert network_form(third) == made.form


def test_what_cannot_be_taken_over_is_told_before_anything_is_written(tmp_path: Path) -> None:
    flow = prepare(tiny(tmp_path, "training.steps=2"))
    run(flow)
    other: list[Override] = [("teacher", str(flow.path)), "training.init=teacher"]
    for overrides, told in (
        (["objective=scm", "backbone.width=32"], "has width=16, this run's has width=32"),
        (["objective=scm", "backbone=dit_mnist"], "is dit_digits, this run's is dit_mnist"),
    ):
        with pytest.raises(UserError, match=told):
            check_teacher(tiny(tmp_path, *overrides, *other))
    check_teacher(tiny(tmp_path, "objective=scm", "backbone.dropout=0.2", *other))  # no weights


def test_jumps_that_were_fixed_are_not_given_back(tmp_path: Path) -> None:
    shortcut, scm = tiny(tmp_path, "objective=shortcut"), tiny(tmp_path, "objective=scm")
    form = taken_over(scm, "a", shortcut, own_form(shortcut))
    assert form == NetworkForm(shortcut.values["objective"], True, 0.0, "a", "Shortcut")
    with pytest.raises(UserError, match="is asked for d = 0 only"):
        taken_over(tiny(tmp_path, "objective=mean_flow"), "b", scm, form)


@pytest.mark.parametrize("objective", ["mean_flow", "flow_matching"])
def test_augmentation_is_no_reason_to_forget_the_jumps(objective: str) -> None:
    """With the labels of an image as it is, 0, the student is its teacher, at every jump length."""
    jumps = objective == "mean_flow"
    settings = {"name": "dit_digits", "width": 16, "depth": 1, "heads": 2}
    backbone = build(BACKBONES, settings)
    teacher, student = (noisy(build_backbone(backbone, (1, 8, 8), 10, jumps, 0)) for _ in "ab")
    add_augmentation(student, "dit_digits")
    fill(student, teacher, "3f2a")
    x, t = torch.randn(8, 1, 8, 8).double(), torch.linspace(0.2, 0.9, 8).double()
    for d in (0 * t, t / 2, t) if jumps else (None,):
        torch.testing.assert_close(student(x, t, d), teacher(x, t, d), rtol=0, atol=0)
