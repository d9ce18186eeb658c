"""Averages of the weights: several decays, power functions, and widths that are made afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import flat, last_tensors, tiny, trainer

from fewstep.errors import UserError
from fewstep.experiments.config.averages import WIDEST, Power, gamma
from fewstep.experiments.config.run_config import RunConfig, amend
from fewstep.experiments.config.settings import Evaluation, Training
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import load_network
from fewstep.experiments.training.posthoc_ema import Fit, Profile, reconstruct, store
from fewstep.objectives import OBJECTIVES
from fewstep.registry import build

KEPT = ("training.posthoc_ema=[0.05,0.1]", "training.posthoc_every=10")


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, WIDEST])
def test_a_profile_is_as_wide_as_it_says(sigma_rel: float) -> None:
    """By its moments, in closed form: s / t has the density (g + 1) s^g."""
    g = gamma(sigma_rel)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-9)
    assert g >= -1e-9


def weights_of(sigma_rel: float, steps: int) -> np.ndarray:
    """What each step weighs in the average after all of them, the integral over its part."""
    ends = (np.arange(steps + 1) / steps) ** (gamma(sigma_rel) + 1)
    return np.diff(ends)


def test_the_recursion_gives_the_profile() -> None:
    steps, average = 200, Power(0.1)
    by_recursion = np.zeros(steps)
    for step in range(steps):
        by_recursion *= average.factor(step)
        by_recursion[step] = 1 - average.factor(step)
    np.testing.assert_allclose(by_recursion, weights_of(0.1, steps), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.08, 0.1, 0.15, 0.2])
def test_a_width_made_afterwards_is_the_average_of_the_trajectory(
    sigma_rel: float, tmp_path: Path
) -> None:
    """Against the average of 2,000 stored steps of a path that drifts and shakes."""
    steps, every = 2000, 50
    s = np.arange(1, steps + 1)[:, None] / steps
    g = np.random.default_rng(0)
    drift = np.sin(3 * s + np.arange(5)) + 0.3 * s**2
    path = drift + 0.1 * g.standard_normal((steps, 5)).cumsum(0) / steps**0.5
    averages = {width: np.zeros(5) for width in (0.05, 0.1)}
    for step in range(steps):
        for width, value in averages.items():
            beta = Power(width).factor(step)
            averages[width] = beta * value + (1 - beta) * path[step]
        if (step + 1) % every == 0:
            stored = {Power(w).name: {"w": torch.tensor(a)} for w, a in averages.items()}
            store(tmp_path, step + 1, stored)
    exact = weights_of(sigma_rel, steps) @ path
    made = reconstruct(tmp_path, sigma_rel, steps)["w"].numpy()
    tracked = sigma_rel in averages
    np.testing.assert_allclose(made, exact, atol=1e-9 if tracked else 1e-3)
    others = [weights_of(w, steps) @ path for w in (0.6 * sigma_rel, min(WIDEST, 1.7 * sigma_rel))]
    assert min(np.abs(other - exact).max() for other in others) > 0.02  # the test can fail
    # up to an earlier step, too: later ones are not looked at
    half = reconstruct(tmp_path, sigma_rel, steps // 2)["w"].numpy()
    exact = weights_of(sigma_rel, steps // 2) @ path[: steps // 2]
    np.testing.assert_allclose(half, exact, atol=2e-3)


def test_a_width_too_far_from_those_stored_is_refused(tmp_path: Path) -> None:
    for step in (50, 100):
        store(tmp_path, step, {Power(0.1).name: {"w": torch.ones(1)}})
    assert Fit([Profile(100, 0.1)], Profile(100, 0.1)).error < 1e-6
    with pytest.raises(
        UserError, match=r"sigma_rel 0\.01 cannot be made .*2 steps of widths 0\.1 "
    ):
        reconstruct(tmp_path, 0.01, 100)
    with pytest.raises(UserError, match="no averages of step 120 in"):
        reconstruct(tmp_path, 0.1, 120)
    (tmp_path / "step-00000100.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"step-00000100.safetensors is damaged"):
        reconstruct(tmp_path, 0.1, 100)


# ------------------------------------------------------------------------- in a run


def test_several_decays_are_averaged_side_by_side(tmp_path: Path) -> None:
    one = trainer(tiny(tmp_path, "training.ema=0.5", "training.lr=0.01"))
    settings = "training.ema=[0.5,0.9]", "training.ema_warmup=false", "training.lr=0.01", *KEPT
    made = trainer(tiny(tmp_path, *settings))
    names = [average.name for average, _ in made.averages]
    assert names == ["ema", "ema-0.9", "sigma_rel-0.05", "sigma_rel-0.1"]
    by_hand = [flat(made.net)] * len(names)
    for step in range(4):
        one._update()
        made._update()
        power = [Power(w).factor(step) for w in (0.05, 0.1)]
        by_hand = [
            decay * mean + (1 - decay) * flat(made.net)
            for decay, mean in zip((0.5, 0.9, *power), by_hand, strict=True)
        ]
    for mean, (_, network) in zip(by_hand, made.averages, strict=True):
        torch.testing.assert_close(flat(network), mean, rtol=1e-5, atol=1e-7)
    assert torch.equal(flat(one.net), flat(made.net))  # an average changes no training


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDirectory]:
    root = tmp_path_factory.mktemp("averages")
    asked = "evaluation.weights=[ema,raw,{sigma_rel:0.1},{sigma_rel:0.07}]"
    settings = "training.ema=[0.5,0.99]", *KEPT, asked, "training.steps=45", "evaluation.steps=[1]"
    config = tiny(root, *settings)
    directory = prepare(config)
    run(directory)
    return config, directory


def test_each_average_is_evaluated_as_cells_of_its_own(
    finished: tuple[RunConfig, RunDirectory],
) -> None:
    config, directory = finished
    cells = list(directory.cells().values())
    names = [cell["cell"]["weights"] for cell in cells]
    kept = ["ema", "ema-0.99", "raw", "sigma_rel-0.07", "sigma_rel-0.1"]
    assert sorted(set(names)) == kept
    assert len({cell["value"] for cell in cells}) == len(cells)
    assert [p.name for p in sorted(directory.averages.iterdir())] == [
        f"step-{step:08d}.safetensors" for step in (10, 20, 30, 40, 45)
    ]
    # ema of a decay that is kept is the cell that is there
    same = amend(config, ["evaluation.weights=[{ema:0.99}]"])
    before = {name: json.dumps(cell) for name, cell in directory.cells().items()}
    run(prepare(same))
    assert {name: json.dumps(cell) for name, cell in directory.cells().items()} == before


def test_what_is_stored_is_what_was_averaged(finished: tuple[RunConfig, RunDirectory]) -> None:
    config, directory = finished
    saved, dataset = last_tensors(directory), config.data.load()
    for name in ("ema-0.99", "sigma_rel-0.1", "raw"):
        network = load_network(config, dataset, directory, name)
        prefix = "net" if name == "raw" else name
        state = {k.removeprefix(f"{prefix}."): v for k, v in saved.items() if k.startswith(prefix)}
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    stored = reconstruct(directory.averages, 0.1, 45)
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, saved[f"sigma_rel-0.1.{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("[{ema:0.9}]", r"no average of decay 0\.9 is kept \(training.ema: 0\.5, 0\.99\)"),
        ("[emma]", r"unknown evaluation.weights 'emma'; did you mean 'ema'\?"),
        ("[{sigma_rel:0.5}]", r"sigma_rel above 0 and at most 0\.2887, got 0\.5"),
        ("[{sigma_rel:wide}]", r"sigma_rel takes a number, got 'wide'"),
        ("[{ema:0.9,sigma_rel:0.1}]", r"takes ema, raw, \{ema: DECAY\}, \{sigma_rel: WIDTH\}, got"),
    ],
)
def test_weights_that_a_run_does_not_keep(
    weights: str, says: str, finished: tuple[RunConfig, RunDirectory]
) -> None:
    with pytest.raises(UserError, match=says):
        amend(finished[0], [f"evaluation.weights={weights}"])


def test_bad_averages() -> None:
    for settings, says in (
        ({"ema": "fast"}, "takes a decay or a list of decays, got 'fast'"),
        ({"ema": []}, "one decay or several different ones"),
        ({"ema": [0.9, 0.9]}, "one decay or several different ones"),
        ({"ema": [0.9, 1.5]}, "training.ema must be at least 0 and at most 1, got 1.5"),
        ({"posthoc_ema": [0.1]}, "training.posthoc_every must be at least 1, got 0"),
        ({"posthoc_ema": [0.3], "posthoc_every": 1}, "at most 0.2887, got 0.3"),
        ({"posthoc_every": 5}, "training.posthoc_ema names no widths"),
        ({"posthoc_ema": [0.1, 0.1], "posthoc_every": 5}, "names a width twice"),
    ):
        with pytest.raises(UserError, match=says):
            Training(**settings)
    with pytest.raises(UserError, match="averages that the run does not keep"):
        Evaluation(weights=[{"sigma_rel": 0.1}]).weights_of(Training())


def test_keys_stay(tmp_path: Path) -> None:
    """One decay is one decay, however it is written; what came later is in no old key."""
    plain = tiny(tmp_path, "training.ema=0.9")
    assert plain.key == tiny(tmp_path, "training.ema=[0.9]").key
    assert tiny(tmp_path, "training.ema=0").key == tiny(tmp_path, "training.ema=0.0").key
    assert plain.key != tiny(tmp_path, "training.ema=[0.9,0.8]").key
    old = json.loads(json.dumps(plain.values))
    for name in ("ema_warmup", "posthoc_ema", "posthoc_every"):
        del old["training"][name]
    assert RunConfig(old).key == plain.key


def test_a_run_that_was_made_before_a_setting_keeps_what_there_was() -> None:
    """A registered entry may give new runs another value than old ones have."""
    name = "consistency_distillation"
    assert OBJECTIVES[name].target_decay == 0.95
    values = {"name": name, "intervals": 64}
    assert build(OBJECTIVES, values).target_decay is None
    assert build(OBJECTIVES, {**values, "target_decay": 0.8}).target_decay == 0.8
