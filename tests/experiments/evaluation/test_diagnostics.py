"""Diagnostics agree with closed forms where a network is the ideal one, and survive real runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import tiny
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig, compose
from fewstep.experiments.data.toy import coefficients
from fewstep.experiments.evaluation import diagnostics
from fewstep.experiments.evaluation.diagnostics import HeldOut, diagnose, diagnose_run, is_current
from fewstep.experiments.run import prepare, run
from fewstep.objectives import (
    OBJECTIVES,
    GaussianFlow,
    LinearPath,
    Loss,
    Net,
    Nets,
    Progress,
    TrigPath,
)

CPU = torch.device("cpu")
S = 0.6
# an Euler step errs by itself, and pairs are drawn with a teacher's Euler steps
EXACT = [
    name
    for name, objective in ((name, OBJECTIVES[name]) for name in OBJECTIVES.names())
    if objective.jump_range == "to_data"
    or (objective.jump_range != "ode" and not objective.needs_pairs and not objective.jump_is_flag)
    if not objective.companion_updates  # many maps match a distribution
]
# what makes the exact map the loss's minimum where the default does not
EXACTLY = {
    "tim": ["objective.cosine=0"],
    "ctm": ["objective.levels=300"],
    "imm": ["objective.k=16"],
    "ayf_emd": ["objective.tangent_share=1"],
    "ayf_lmd": ["objective.tangent_share=1"],
}


@pytest.fixture(scope="module", autouse=True)
def few_jumps() -> Iterator[None]:
    """Exact trajectories take a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "JUMPS", 400)
        diagnostics.exact_jumps.cache_clear()
        yield
    diagnostics.exact_jumps.cache_clear()


def gaussian(objective: str, *more: str) -> RunConfig:
    given = (f"objective={objective}", "data=gaussian", f"data.std={S}", "training.batch_size=256")
    return compose([*given, *more])


def ideal(config: RunConfig) -> Net:
    steps = config.training.steps
    net = config.objective.gaussian_optimum(
        GaussianFlow(config.objective.path, S), Progress(steps, steps)
    )
    assert net is not None
    return net


def facts_of(config: RunConfig, net: Net, rows: int = 8192) -> dict:
    learned = config.objective.auxiliary_module()
    nets = Nets(net, net, teacher=net, auxiliary=learned, snapshot=net)
    return diagnose(config, config.data.load(), nets, CPU, rows)[0]


def variance(t: Tensor) -> Tensor:
    """Of x_t on the linear path."""
    return (1 - t) ** 2 * S**2 + t**2


# ---- the jump map -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_the_ideal_network_jumps_without_error(name: str) -> None:
    config = gaussian(name, *EXACTLY.get(name, []))
    objective = config.objective
    net = ideal(config)
    errors = diagnostics.jump_errors(config, Nets(net, net), False, CPU)
    for error in errors:
        # jumps of 1/128 may be asked for as d = 0, and are Euler's
        assert error["rms"] < (1e-5 if error["length"] > 1 / 128 else 2e-4), error
    once = objective.jump_range == "one_step"
    assert [e["length"] for e in errors] == ([1] if once else [2.0**-k for k in range(8)])

    def bent(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return 1.1 * net(x, t, d, y)

    worse = diagnostics.jump_errors(config, Nets(bent, bent), False, CPU)
    assert worse[0]["rms"] > 0.01


def test_flow_matching_errs_as_euler_does() -> None:
    config = gaussian("flow_matching")
    errors = diagnostics.jump_errors(config, Nets(ideal(config), ideal(config)), False, CPU)
    for error in errors:
        d = error["length"]
        t = d * torch.arange(1, round(1 / d) + 1).double()
        slope = (t - (1 - t) * S**2) / variance(t)
        off = 1 - d * slope - (variance(t - d) / variance(t)).sqrt()
        expected = (variance(t) * off**2).mean().sqrt().item()
        assert error["rms"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", ["consistency", "scm"])
def test_labels_choose_whose_flow_is_exact(
    name: str, labels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network made of the exact map to data errs nowhere, one that ignores labels does."""
    config = compose([f"objective={name}", "data=gaussians", "data.modes=3", "data.std=0.3"])
    mixture, path = config.data.mixture(), config.objective.path

    def net(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        x_t = x * 0.5 if name == "scm" else x
        if labels:
            assert y is not None
            data = mixture.mode_flow_map(x_t, y, t, 0 * t, coefficients(path))
        else:
            data = mixture.flow_map(x_t, t.double(), 0 * t.double(), coefficients(path))
        if name == "consistency":
            return ((x_t - data) / t[:, None]).float()
        return ((t.cos()[:, None] * x_t - data) / (0.5 * t.sin()[:, None])).float()

    monkeypatch.setattr(
        diagnostics, "trained_jump_lengths", lambda objective: [1, 0.25]
    )  # in less time
    right = diagnostics.jump_errors(config, Nets(net, net), labels, CPU)
    assert max(e["rms"] for e in right) < 1e-5
    if not labels:
        wrong = diagnostics.jump_errors(config, Nets(net, net), True, CPU)
        assert wrong[0]["rms"] > 0.3


def test_straightened_flows_are_held_to_whole_jumps_and_distributions_to_none() -> None:
    lengths = {
        name: diagnostics.trained_jump_lengths(OBJECTIVES[name])
        for name in ("reflow", "live_reflow", "sid")
    }
    assert lengths == {"reflow": [1], "live_reflow": [1], "sid": []}


# ---- the loss -----------------------------------------------------------------------------------


def test_flow_matching_loss_is_the_variance_that_is_left() -> None:
    """Var(eps - x | x_t) = s^2 / var(t): alpha d_sigma - sigma d_alpha = 1."""
    config = gaussian("flow_matching")
    facts = facts_of(config, ideal(config), rows=20_000)
    bins = facts["loss_by_log_snr"]
    assert (bins[0]["low"], bins[-1]["high"]) == (None, None)
    assert sum(b["count"] for b in bins) == 79 * 256  # whole batches
    checked = 0
    for b in bins:
        if b["count"] < 30 or None in (b["low"], b["high"]):
            continue
        ends = torch.tensor([b["high"], b["low"]]).double()
        low, high = 1 / (1 + (ends / 2).exp())  # log-SNR = 2 log((1 - t) / t)
        t = torch.linspace(float(low), float(high), 200).double()
        expected = (S**2 / variance(t)).mean().item()
        assert abs(b["mean"] - expected) < 4.5 * b["standard_error"] + 1e-3
        # two dimensions: the mean of two squares has the relative variance 1
        assert b["standard_error"] == pytest.approx(expected / math.sqrt(b["count"]), rel=0.5)
        checked += 1
    assert checked > 12
    grid = facts["loss_grid"]
    assert grid["d_edges"] is None
    for i, (mean, count) in enumerate(zip(grid["mean"][0], grid["count"][0], strict=True)):
        t = torch.linspace(grid["t_edges"][i], grid["t_edges"][i + 1], 50).double()
        expected = (S**2 / variance(t)).mean().item()
        assert abs(mean - expected) < 4.5 * expected / math.sqrt(count)


def test_shortcut_trains_multiples_of_d_and_halves_agree() -> None:
    config = gaussian("shortcut")
    grid = facts_of(config, ideal(config))["loss_grid"]
    assert grid["d_edges"] == [0, *(2.0**-k for k in range(7, -1, -1))]
    mean, count = np.array(grid["mean"], dtype=float), np.array(grid["count"])
    assert count[0].min() > 50  # d = 0
    assert count[1].max() == 0  # 1/128, the finest, is asked for as d = 0
    assert np.isnan(mean[1]).all()
    assert count[2].min() > 0  # 1/64
    for row, d in list(enumerate(grid["d_edges"]))[4:]:  # from 1/16 on, multiples leave gaps
        trained = np.flatnonzero(count[row])
        np.testing.assert_array_equal(trained + 1, np.arange(1, 1 / d + 1) * 32 * d)
    assert np.nanmax(mean[3:]) < 1e-9
    assert np.nanmax(mean[2]) < 1e-3  # made of two of Euler's steps
    assert mean[0].min() > 0.1


def test_cells_of_the_grid() -> None:
    t = torch.tensor([0.0, 1 / 32, 1 / 32 + 1e-6, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    d = torch.tensor([0.0, 1 / 1000, 1 / 128, 0.3, 0.25, 1.0, 0.25 + 1e-9], dtype=torch.float64)
    value = torch.tensor([1.0, 2, 3, 4, 5, 6, 7], dtype=torch.float64)
    grid = diagnostics.loss_grid(Loss(value, 2 * t, d=2 * d), t_max=2.0)
    mean = np.array(grid["mean"], dtype=float)
    assert (mean[0, 0], mean[1, 0], mean[1, 1], mean[7, 15], mean[6, 31], mean[8, 31]) == (
        1, 2, 3, 4, 6, 6)  # fmt: skip
    assert np.array(grid["count"]).sum() == 7
    assert np.isfinite(mean).sum() == 6
    assert grid["t_edges"][-1] == 2.0


def test_bins_of_log_snr() -> None:
    path = TrigPath(sigma_d=1.0)
    on_edge = torch.tensor(math.atan(math.exp(-0.5)))  # log-SNR = -2 log tan t = 1
    t = torch.tensor([0.0, path.t_max, on_edge - 1e-3, on_edge + 1e-3, math.pi / 4 + 1e-3])
    bins = diagnostics.loss_by_log_snr(Loss(torch.arange(5.0).double(), t.double()), path)
    where = {b["low"]: b["mean"] for b in bins if b["count"]}
    assert where == {12.0: 0, None: 1, 1.0: 2, 0.0: 3, -1.0: 4}
    assert all(b["standard_error"] is None for b in bins)
    half = torch.tensor([0.5], dtype=torch.float64)  # log-SNR = 0, on an edge: [low, high)
    (found,) = (
        b for b in diagnostics.loss_by_log_snr(Loss(half, half), LinearPath()) if b["count"]
    )
    assert (found["low"], found["high"]) == (0, 1)


# ---- one step to the data -----------------------------------------------------------------------


def test_one_step_of_the_ideal_flow_is_the_posterior_mean() -> None:
    """Its error is the posterior's standard deviation, t s / sqrt(var(t))."""
    config = gaussian("flow_matching")
    found = facts_of(config, ideal(config), rows=256)["denoising"]
    t = torch.tensor(found["t"]).double()
    assert t.tolist() == [i / 16 for i in range(1, 17)]
    expected = t * S / variance(t).sqrt()
    np.testing.assert_allclose(found["rms"], expected.numpy(), rtol=0.08)


def test_what_is_shown_is_the_step_to_the_data() -> None:
    config = gaussian("consistency")
    net = ideal(config)
    _, arrays = diagnose(config, config.data.load(), Nets(net, net), CPU, 256)
    flow = GaussianFlow(LinearPath(), S)
    for time, noisy, denoised in zip(arrays["t"], arrays["noisy"], arrays["denoised"], strict=True):
        t = torch.full((512,), float(time))
        expected = flow.map(torch.tensor(noisy), t, 0 * t)
        np.testing.assert_allclose(denoised, expected.numpy(), atol=1e-5)


def test_the_loss_is_that_of_the_end_of_training() -> None:
    config = gaussian("consistency")  # whose grid has 64 intervals by then, and 1 at first
    (count,) = facts_of(config, ideal(config), rows=4096)["loss_grid"]["count"]
    assert min(count) > 0


def test_draws_are_the_same_for_all_objectives_and_each_time() -> None:
    made = {}
    for name in ("flow_matching", "consistency"):
        config = gaussian(name)
        net = ideal(config)
        dataset = config.data.load()
        once, again = (diagnose(config, dataset, Nets(net, net), CPU, 256) for _ in range(2))
        assert once[0] == again[0]
        made[name] = once[1]
        np.testing.assert_array_equal(made[name]["clean"], dataset.test.x[:512].numpy())
    noisy = [arrays["noisy"] for arrays in made.values()]
    np.testing.assert_array_equal(*noisy)
    path, clean = LinearPath(), made["flow_matching"]["clean"]
    eps = noisy[0][-1]  # at t = 1
    half = path.mix(torch.tensor(clean), torch.tensor(eps), torch.full((512,), 0.5))
    np.testing.assert_allclose(noisy[0][7], half.numpy(), atol=1e-6)


# ---- finished runs ------------------------------------------------------------------------------


def finished(config: RunConfig) -> Path:
    directory = prepare(config)
    run(directory)
    return directory.path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return finished(compose([*TOY, "objective=flow_matching", ("runs", str(root))]))


TOY = ("data=gaussians", "backbone.width=16", "backbone.depth=1", "training.batch_size=32",
       "training.steps=8", "evaluation.steps=[]", "data.test_samples=100")  # fmt: skip
WITH_TEACHER = {
    "progressive_distillation": ("objective.finest=4",),
    "reflow": ("objective.pairs=64", "objective.pair_steps=4"),
    "scd": (),
    "consistency_distillation": (),
    "sid": (),
}


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_runs_with_a_teacher(name: str, teacher: Path) -> None:
    given = [*TOY, f"objective={name}", *WITH_TEACHER[name], ("runs", str(teacher.parents[1]))]
    config = compose([*given, ("teacher", str(teacher))])
    directory = prepare(config)
    run(directory)
    before = directory.metrics_file.read_bytes()
    facts = diagnose_run(directory, config, rows=64)
    assert directory.diagnosis() == facts
    assert directory.metrics_file.read_bytes() == before
    assert (facts["key"], facts["step"]) == (directory.key, 8)
    jumps = {"progressive_distillation": 1, "reflow": 1, "sid": 0}.get(name, 8)
    assert len(facts["jump_error"]) == jumps
    with np.load(directory.diagnostics / "diagnostics.npz") as file:
        assert file["denoised"].shape == (16, 100, 2)


def test_pairs_are_the_teachers(teacher: Path) -> None:
    config = compose([*TOY, "objective=reflow", ("teacher", str(teacher))])

    def field(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return -0.5 * x

    held_out = HeldOut(config, config.data.load(), Nets(field, field, teacher=field), CPU)
    assert len(held_out) == 100
    batch = held_out(torch.tensor([7, 3]))
    assert batch.eps is not None
    torch.testing.assert_close(batch.x, batch.eps * (1 + 0.5 / 128) ** 128)
    nets = Nets(field, field, teacher=field)
    _, arrays = diagnostics.one_step_denoising(config, config.data.load(), nets, held_out)
    np.testing.assert_allclose(arrays["noisy"][-1][[7, 3]], batch.eps.numpy(), atol=1e-6)


def test_images_and_what_is_current(tmp_path: Path) -> None:
    config = tiny(tmp_path, "objective=shortcut", "training.steps=2")
    directory = prepare(config)
    run(directory)
    assert not is_current(directory.diagnosis(), config, 32)
    facts = diagnose_run(directory, config, rows=32)
    assert is_current(facts, config, 32)
    assert not is_current(facts, config, 33)
    assert "jump_error" not in facts
    assert set(facts["logs"]) == {"loss_flow", "loss_bootstrap"}
    with np.load(directory.diagnostics / "diagnostics.npz") as file:
        assert file["denoised"].dtype == np.uint8
        assert file["denoised"].shape == (16, 8, 1, 8, 8)
        np.testing.assert_array_equal(file["clean"], config.data.load().test.x[:8].numpy())
    assert [f.name for f in directory.diagnostics.iterdir() if f.name.startswith(".")] == []

    with pytest.raises(UserError, match="is of step 2, expected 3"):
        diagnose_run(directory, tiny(tmp_path, "objective=shortcut", "training.steps=3"))
