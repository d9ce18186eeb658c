"""Objectives in a training loop of one's own, and the names they had in version 0.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Generator, Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives import (
    DMD2,
    OBJECTIVES,
    SCD,
    SCM,
    Batch,
    Consistency,
    ConsistencyDistillation,
    FlowMatching,
    GaussianFlow,
    LinearPath,
    Loss,
    MeanFlow,
    Net,
    Nets,
    Objective,
    Progress,
    ProgressiveDistillation,
    Reflow,
    Teacher,
    TrigPath,
)
from fewstep.objectives.conformance.case import Case


class OwnNet(nn.Module):
    """As layout.md's ten lines have it: forward(x, t, d=None, y=None)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        d = torch.zeros_like(t) if d is None else d
        return self.layers(torch.cat([x, t[:, None], d[:, None]], 1))


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_network_of_ones_own_trains_and_samples(name: str) -> None:
    objective, net, g = OBJECTIVES[name], OwnNet(), Generator().manual_seed(0)
    optional = {}
    if objective.needs_teacher:
        optional["teacher"] = Case(objective).teacher
    if (auxiliary := objective.auxiliary_module()) is not None:
        optional["auxiliary"] = auxiliary
    companion = OwnNet()
    if objective.companion_updates:
        optional["companion"] = companion
    if objective.continues:
        optional["snapshot"] = OwnNet()
    x = torch.randn(8, 2, generator=g)
    batch = Batch(x, eps=x if objective.needs_pairs else None)
    objective.loss(Nets(net, **optional), batch, Progress(0, 10), g).per_sample.mean().backward()
    assert any(bool(p.grad.any()) for p in net.parameters() if p.grad is not None)
    if objective.companion_updates:
        net.zero_grad()
        loss = objective.companion_loss(Nets(net, **optional), batch, Progress(0, 10), g)
        loss.per_sample.mean().backward()
        assert any(bool(p.grad.any()) for p in companion.parameters() if p.grad is not None)
        assert all(p.grad is None for p in net.parameters())
    samples = objective.sample(net, torch.randn(5, 2), y=None, times=2, g=g)
    assert samples.shape == (5, 2)
    assert not samples.requires_grad


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (SCM(), r"pass Nets\(net, auxiliary=objective.auxiliary_module\(\)\)"),
        (SCD(), r"pass Nets\(net, teacher=Teacher\("),
        (ProgressiveDistillation(), r"pass Nets\(net, snapshot="),
        (DMD2(), r"pass Nets\(net, teacher=Teacher\("),
        (Reflow(), r"reflow trains on stored pairs: pass Batch\(x, eps="),
    ],
)
def test_a_network_that_is_missing_is_named(objective: Objective, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective.loss(Nets(OwnNet()), Batch(torch.randn(4, 2)), Progress(9, 10), Generator())


@pytest.mark.parametrize(
    "objective", [SCD(sigma_d=0.6), ConsistencyDistillation(), ProgressiveDistillation()]
)
def test_a_teacher_on_another_path_is_refused(objective: Objective) -> None:
    x, g = torch.randn(8, 2), Generator().manual_seed(0)
    flow = FlowMatching()
    for path in (objective.path, TrigPath(0.9)):
        teacher = Teacher(flow, OwnNet(), path)
        nets = Nets(OwnNet(), teacher=teacher, auxiliary=objective.auxiliary_module())
        if path == objective.path:
            objective.loss(nets, Batch(x), Progress(0, 10), g)
            continue
        with pytest.raises(UserError, match=r"Nets.teacher gives velocities on TrigPath.*0.9"):
            objective.loss(nets, Batch(x), Progress(0, 10), g)


def test_without_an_ema_targets_come_from_the_network_itself() -> None:
    net, batch = OwnNet(), Batch(torch.randn(64, 2))
    alone, with_itself = (
        Consistency().loss(nets, batch, Progress(9, 10), Generator().manual_seed(0)).per_sample
        for nets in (Nets(net), Nets(net, net))
    )
    assert torch.equal(alone, with_itself)


@pytest.mark.parametrize("objective", [FlowMatching(), SCM(), MeanFlow()], ids=lambda o: o.title)
def test_a_number_of_steps_is_uniform_in_the_paths_time(objective: Objective) -> None:
    net, noise = OwnNet(), torch.randn(5, 2)
    t_max = objective.path.t_max
    expected = objective.sample(
        net, noise, None, [t_max, 0.75 * t_max, t_max / 2, t_max / 4, 0.0], Generator()
    )
    torch.testing.assert_close(objective.sample(net, noise, times=4, g=Generator()), expected)


def test_without_a_generator_torchs_own_draws() -> None:
    torch.manual_seed(0)
    first = SCM().sample(OwnNet(), torch.ones(5, 2), times=3)
    assert not torch.equal(first, SCM().sample(OwnNet(), torch.ones(5, 2), times=3))


# ---- names of version 0.1 ------------------------------------------------------------------------


def old_plugin() -> type[Objective]:
    class Plugin(Objective):
        title: ClassVar[str] = "Plugin"
        reach: ClassVar = "data"
        path = LinearPath()  # type: ignore[assignment]

        def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
            behind = nets.behind("ema")  # type: ignore[attr-defined]
            assert nets.learned is not None  # type: ignore[attr-defined]
            assert nets.former is None  # type: ignore[attr-defined]
            return Loss(behind(batch.x, batch.x[:, 0]).sum(1), batch.x[:, 0])

        def learned_parts(self) -> nn.Module:
            return nn.Identity()

        def freezes(self, progress: Progress) -> bool:
            return progress.step == 3

        def couple(self, teacher: Net, eps: Tensor, y: Tensor | None) -> Tensor:
            return eps

        @property
        def guides(self) -> bool:
            return True

        def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            return x_t

        def ideal(self, flow: GaussianFlow, progress: Progress) -> Net | None:
            return flow  # type: ignore[return-value]

    return Plugin


def test_an_objective_of_version_0_1_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match="since fewstep 0.2") as caught:
        plugin = old_plugin()()
    warned = {str(w.message).split(" since")[0] for w in caught}
    assert "Plugin.reach is called jump_range" in warned
    assert len(warned) == 6
    assert plugin.jump_range == "to_data"
    assert isinstance(plugin.auxiliary_module(), nn.Identity)
    assert plugin.takes_snapshot(Progress(3, 9))
    assert not plugin.takes_snapshot(Progress(4, 9))
    assert plugin.uses_guidance
    assert plugin.gaussian_optimum("flow", Progress(0, 1)) == "flow"  # type: ignore[arg-type, comparison-overlap]
    eps = torch.ones(2, 2)
    assert plugin.make_pairs(OwnNet(), eps, None) is eps
    with pytest.warns(DeprecationWarning, match="argument 'learned'"):
        nets = Nets(OwnNet(), learned=nn.Identity())  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="target_net"):
        plugin.loss(nets, Batch(torch.ones(2, 2)), Progress(0, 1), Generator())


@pytest.mark.parametrize(
    ("old", "new"), [("teaches", "can_teach"), ("reach", "jump_range"), ("guides", "uses_guidance")]
)
def test_old_members_of_our_objectives_can_be_read(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new}"):
        value = getattr(FlowMatching(), old)
    assert value == ("step" if old == "reach" else getattr(FlowMatching(), new))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = FlowMatching().nothing  # type: ignore[attr-defined]


class Data:
    reach = "data"


def flows(*bases: type, **members: object) -> type:
    return type("Flows", (*bases, FlowMatching), members)


def own_reach(self: object) -> str:
    return "data"


@pytest.mark.parametrize(
    "made",
    [lambda: flows(reach="data"), lambda: flows(Data), lambda: flows(reach=property(own_reach))],
)
def test_the_old_reach_of_a_class_a_mixin_or_a_property(made: Callable[[], type]) -> None:
    with pytest.warns(DeprecationWarning, match="reach is called jump_range"):
        kind = made()
    assert kind().jump_range == "to_data"  # else it would be sampled as a flow, without a word
    assert kind().reach == "data"
    assert type("Late", (kind,), {"jump_range": "ode"})().jump_range == "ode"


def extended() -> type:
    class Extended(SCM):
        def learned_parts(self) -> nn.Module | None:
            return nn.Sequential(super().learned_parts())  # type: ignore[misc]

    return Extended


class Freezing:
    def freezes(self, progress: Progress) -> bool:
        return True


def test_old_members_are_there_for_super_and_on_classes() -> None:
    with pytest.warns(DeprecationWarning, match="learned_parts is called auxiliary_module"):
        kind = extended()
    with pytest.warns(DeprecationWarning, match="learned_parts is called auxiliary_module"):
        assert isinstance(kind().auxiliary_module(), nn.Sequential)
    with pytest.warns(DeprecationWarning, match="freezes is called takes_snapshot"):
        mixed = type("Mixed", (Freezing, MeanFlow), {})
    assert mixed().takes_snapshot(Progress(1, 2))
    with pytest.warns(DeprecationWarning, match="MeanFlow.reach is called jump_range"):
        assert MeanFlow.reach == "any"  # type: ignore[attr-defined]


def test_an_argument_under_both_names_is_refused() -> None:
    with pytest.raises(TypeError, match="'learned' and 'auxiliary'"):
        Nets(OwnNet(), learned=OwnNet(), auxiliary=OwnNet())  # type: ignore[call-arg]


def test_old_names_of_paths_can_be_imported() -> None:
    with pytest.warns(DeprecationWarning, match="called fewstep.objectives.LinearPath"):
        from fewstep.objectives import Linear  # type: ignore[attr-defined]
    assert Linear is LinearPath
    with pytest.warns(DeprecationWarning, match="noise_fraction"):
        assert LinearPath().noise_share(torch.tensor(0.25)) == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from fewstep.objectives import Nothing  # type: ignore[attr-defined]  # noqa: F401
