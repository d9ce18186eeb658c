"""The training loop: its numbers against closed forms, its failures, its options."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.tiny import (
    checkpoint_steps,
    flat,
    last_tensors,
    registered,
    taught,
    tiny,
    train,
    trainer,
)
from torch import Generator, Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import Override, RunConfig, compose
from fewstep.experiments.run import RunFailed, prepare, run
from fewstep.experiments.training.augmentation import randomised
from fewstep.experiments.training.network import build_network, choose_device
from fewstep.experiments.training.trainer import Interrupted, NotFinite, Trainer
from fewstep.experiments.validation import check
from fewstep.objectives import OBJECTIVES, Batch, FlowMatching, Loss, Nets, Progress, SiD

ALL = OBJECTIVES.names()

# ------------------------------------------------------------------------------------ updates


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_first_update_is_as_long_as_its_rate(tmp_path: Path, warmup: int) -> None:
    """AdamW's first step is lr g / (|g| + eps): lr itself wherever the gradient is not tiny."""
    made = trainer(tiny(tmp_path, "training.lr=0.01", ("training.warmup", warmup)))
    before = flat(made.net)
    made._update()
    assert float((flat(made.net) - before).abs().max()) == pytest.approx(
        0.01 / (warmup + 1), rel=1e-3
    )


def test_the_auxiliary_module_learns_at_its_own_rate(tmp_path: Path) -> None:
    """Its first update is as long as its rate, the network's as the network's, on one schedule."""
    given = ("objective=scm", "training.lr=0.01", "training.warmup=1")
    for overrides, rate in ((("training.auxiliary_lr=0.002",), 0.002), ((), 0.01)):
        made = trainer(tiny(tmp_path, *given, *overrides))
        assert made.auxiliary is not None
        before = flat(made.net), flat(made.auxiliary)
        made._update()
        after = flat(made.net), flat(made.auxiliary)
        lengths = [float((b - a).abs().max()) for a, b in zip(before, after, strict=True)]
        assert lengths == pytest.approx([0.01 / 2, rate / 2], rel=1e-3)


def test_a_companion_learns_at_its_own_rate_in_turns(tmp_path: Path) -> None:
    """From the network's first weights, its teacher's; AdamW's first update is as long as it is."""
    given = [*taught(tmp_path, "sid"), "training.lr=0.01", "training.companion_lr=0.002"]
    made = trainer(tiny(tmp_path, *given, "training.warmup=1"))
    companion, before = made.companion, flat(made.net)
    assert companion is not None
    assert made.teacher is not None
    assert torch.equal(flat(companion.net), before)
    assert torch.equal(flat(made.teacher.net), before)  # type: ignore[arg-type]
    seen: list[tuple[str, list[bool]]] = []
    back = made._back

    def watched(loss: Tensor, named: Any) -> Tensor:
        trained = [p.requires_grad for net in (made.net, companion.net) for p in net.parameters()]
        assert made.net.training == trained[0] == (not trained[-1]) == (not companion.net.training)
        others = flat(made.net) if named is companion.named else flat(companion.net)
        norm = back(loss, named)
        seen.append((next(iter(named)).partition(".")[0], trained))
        assert torch.equal(others, flat(made.net if named is companion.named else companion.net))
        return norm

    made._back = watched  # type: ignore[method-assign]
    logs = made._update()
    assert [who for who, _ in seen] == ["companion", "net"]
    assert {"companion_loss", "companion_grad_norm", "loss", "score_gap"} <= set(logs)
    lengths = [float((flat(net) - before).abs().max()) for net in (made.net, companion.net)]
    assert lengths == pytest.approx([0.01 / 2, 0.002 / 2], rel=1e-3)
    several = trainer(tiny(tmp_path, *given, "objective.companion_updates=3"))
    counted: list[float] = []
    step = several.companion.optimiser.step  # type: ignore[union-attr]
    several.companion.optimiser.step = lambda lr: (counted.append(lr), step(lr))[1]  # type: ignore
    several._update()
    assert counted == [0.002] * 3


def test_a_companion_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Breaks(SiD):
        def companion_loss(self, nets: Nets, batch: Batch, progress: Progress, g: Any) -> Loss:
            loss = super().companion_loss(nets, batch, progress, g)
            bad = loss.per_sample * (float("nan") if progress.step == 2 else 1)
            return replace(loss, per_sample=bad)

    with registered("objective", "breaks", Breaks()):
        (_, teacher) = taught(tmp_path, "sid")
        made = trainer(tiny(tmp_path, "objective=breaks", teacher))
        with pytest.raises(NotFinite, match="not finite at step 3"):
            made.train(lambda: False, lambda done, total, rate: None)


def test_ema_is_the_average_it_says_it_is(tmp_path: Path) -> None:
    made = trainer(tiny(tmp_path, "training.ema=0.2", "training.lr=0.01"))
    by_hand = flat(made.net)
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):  # (1 + i) / (10 + i), until it reaches 0.2
        made._update()
        by_hand = decay * by_hand + (1 - decay) * flat(made.net)
        torch.testing.assert_close(flat(made.ema), by_hand, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(flat(made.ema), flat(made.net), atol=1e-4)


def test_the_average_that_makes_targets_has_a_decay_of_its_own(tmp_path: Path) -> None:
    """Without warm-up; the loss asks it, and what is evaluated does not feel it."""
    asked = ("objective=consistency", "training.ema=0.2", "training.lr=0.01")
    made = trainer(tiny(tmp_path, *asked, "objective.target_decay=0.7"))
    by_hand = flat(made.net)
    for _ in range(3):
        made._update()
        by_hand = 0.7 * by_hand + 0.3 * flat(made.net)
    assert made.target is not None
    torch.testing.assert_close(flat(made.target), by_hand, rtol=1e-5, atol=1e-7)
    nets = made.nets(made.net)  # type: ignore[arg-type]
    assert nets.ema is made.target
    same = trainer(tiny(tmp_path, *asked))
    assert same.target is None
    assert same.nets(same.net).ema is same.ema  # type: ignore[arg-type]
    assert trainer(tiny(tmp_path, *asked)).config.key == same.config.key != made.config.key
    for value, says in (("1", "less than 1, got 1"), ("-0.1", "at least 0")):
        with pytest.raises(UserError, match=f"objective.target_decay must be .*{says}"):
            tiny(tmp_path, *asked, f"objective.target_decay={value}")
    with pytest.raises(UserError, match=r"decay of an average, got 0\.9 with objective.target=onl"):
        tiny(tmp_path, *asked, "objective.target_decay=0.9", "objective.target=online")
    with pytest.raises(UserError, match=r"unknown setting 'objective.target_decay'"):
        tiny(tmp_path, "objective.target_decay=0.9")


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    def gradient_norm(made: Trainer) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in made.named.values()))  # type: ignore[union-attr]

    clipped = trainer(tiny(tmp_path, "objective=scm", "training.clip=0.001"))
    before = float(clipped._update()["grad_norm"])
    assert before > 0.1  # what is told is the norm before
    assert gradient_norm(clipped) == pytest.approx(0.001, rel=1e-3)
    free = trainer(tiny(tmp_path, "objective=scm", "training.clip=null"))
    told = float(free._update()["grad_norm"])
    assert gradient_norm(free) == pytest.approx(told, rel=1e-5)
    assert told == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_share_of_labels_dropped(tmp_path: Path, share: float) -> None:
    config, y = tiny(tmp_path, ("training.label_dropout", share)), torch.arange(20_000) % 10
    batch = Batch(torch.zeros(len(y), 2), y)
    kept = randomised(config, batch, 10, 0, Generator().manual_seed(0)).y
    assert kept is not None
    dropped = kept == 10
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.015)
    assert torch.equal(kept[~dropped], y[~dropped])


@dataclass(frozen=True)
class Witness(FlowMatching):
    """Logs the labels it is given."""

    title: ClassVar[str] = "Witness"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        assert batch.y is not None
        loss = super().loss(nets, batch, progress, g)
        return replace(loss, logs={"dropped": (batch.y == 10).float().mean()})


def test_rows_of_a_batch_are_of_one_class_where_asked(tmp_path: Path) -> None:
    rows = ("training.batch_size=32", "training.class_rows=8", "training.steps=90")
    made = trainer(tiny(tmp_path, *rows))
    drawn = [made.loader.rows(step).y for step in range(90)]
    classes = torch.stack([y for y in drawn if y is not None]).view(-1, 8)
    assert len(classes) == 360
    assert (classes == classes[:, :1]).all()
    counts = torch.bincount(classes.flatten(), minlength=10)
    frequency = torch.bincount(made.dataset.train.y) / len(made.dataset.train)  # type: ignore
    assert float((counts / counts.sum() - frequency).abs().max()) < 0.02
    with pytest.raises(UserError, match=r"class_rows must divide .*batch_size=32, got 5"):
        tiny(tmp_path, "training.batch_size=32", "training.class_rows=5")
    with pytest.raises(UserError, match=r"training\.class_rows=4: digits has no classes"):
        check([tiny(tmp_path, "data.labels=false", "training.class_rows=4")])
    assert not list(tmp_path.glob("train"))


def test_the_objective_is_given_dropped_labels_and_what_it_logs_is_kept(tmp_path: Path) -> None:
    with registered("objective", "witness", Witness()):
        config = tiny(
            tmp_path,
            "objective=witness",
            "training.label_dropout=0.5",
            "training.batch_size=500",
            "training.log_every=1",
        )
        rows = train(config).directory.metrics()
    shares = [row["dropped"] for row in rows]
    assert all(0.4 < share < 0.6 for share in shares)
    assert len(set(shares)) > 3  # other ones each step


def test_weights_are_drawn_from_the_seed_alone(tmp_path: Path) -> None:
    data = tiny(tmp_path).data.load()
    torch.manual_seed(0)
    one = flat(build_network(tiny(tmp_path), data))
    torch.manual_seed(1)
    assert torch.equal(flat(build_network(tiny(tmp_path), data)), one)
    assert torch.equal(flat(build_network(tiny(tmp_path, "objective=scm"), data)), one)
    assert not torch.equal(flat(build_network(tiny(tmp_path, "seed=1"), data)), one)


# --------------------------------------------------------------------------------- what is told


def test_rows_are_logged_when_due_and_at_the_end(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        "training.steps=10",
        "training.warmup=4",
        "training.log_every=4",
        "training.validate_every=5",
    )
    rows = train(config).directory.metrics()
    assert [row["step"] for row in rows] == [4, 5, 8, 10]
    assert [row["images_seen"] for row in rows] == [64, 80, 128, 160]
    assert ["validation_loss" in row for row in rows] == [False, True, False, True]
    assert [row["lr"] for row in rows] == pytest.approx([0.8e-3, 1e-3, 1e-3, 1e-3])
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["grad_norm"] > 0


@pytest.mark.parametrize("objective", ["shortcut", "shortcut_kvfrans", "shortcut_continuous"])
def test_validation_takes_the_same_jump_lengths_at_every_step(
    tmp_path: Path, objective: str
) -> None:
    guided = "training.label_dropout=0.1"
    made = trainer(tiny(tmp_path, f"objective={objective}", guided))
    values = []
    for made.step in (1, 2, 5):
        values.append(made.validation_loss())
    assert values == [values[0]] * 3


def test_validation_is_of_the_averaged_weights_on_held_out_data(tmp_path: Path) -> None:
    made = train(tiny(tmp_path))
    value = made.validation_loss()
    torch.manual_seed(99)
    assert made.validation_loss() == value  # the same draws every time
    for p in made.net.parameters():
        p.data.add_(1.0)
    assert made.validation_loss() == value
    made.dataset.train.x.zero_()
    assert made.validation_loss() == value
    for p in made.ema.parameters():
        p.data.add_(0.01)
    assert made.validation_loss() != value


@pytest.mark.parametrize("name", ALL)
def test_validation_does_not_disturb_training(tmp_path: Path, name: str) -> None:
    looked, blind = (
        train(
            tiny(
                tmp_path / str(every),
                *taught(tmp_path, name),
                "training.label_dropout=0.2",
                ("training.validate_every", every),
                ("training.log_every", every),
            )
        )
        for every in (1, 0)
    )
    assert len(looked.directory.metrics()) == 6
    assert len(blind.directory.metrics()) == 1
    for a, b in zip(looked.named.values(), blind.named.values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(flat(looked.ema), flat(blind.ema))
    assert looked.last["validation_loss"] == blind.last["validation_loss"]


# ------------------------------------------------------------------------- not finite, interrupted


@dataclass(frozen=True)
class Breaks(FlowMatching):
    """Its loss, or only its gradient, is not a number from the update number ``at`` on."""

    at: int = 7
    what: str = "loss"

    title: ClassVar[str] = "Breaks"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().loss(nets, batch, progress, g)
        value = loss.per_sample
        if progress.step + 1 >= self.at:
            # 0 with an infinite derivative, or NaN outright
            value = value + (value * 0).sqrt() if self.what == "gradient" else value * math.nan
        return replace(loss, per_sample=value)


@pytest.mark.parametrize(
    ("what", "clip"), [("loss", 1), ("gradient", 1), ("loss", None), ("gradient", None)]
)
def test_a_loss_that_is_not_finite_is_a_recorded_failure(
    tmp_path: Path, what: str, clip: float | None
) -> None:
    with registered("objective", "breaks", Breaks()):
        config = tiny(
            tmp_path,
            "objective=breaks",
            ("objective.what", what),
            ("training.clip", clip),
            "training.steps=12",
            "training.checkpoint_every=3",
            "training.log_every=1",
        )
        directory = prepare(config)
        for _ in range(2):  # again from step 6, with the same end
            with pytest.raises(RunFailed, match=r"nan: .*not finite at step 7"):
                run(directory)
            failure = directory.failure()
            assert failure is not None
            assert (failure["class"], failure["step"]) == ("nan", 7)
            assert failure["key"] == config.key
            assert "\n" not in failure["message"]
            assert "NotFinite" in failure["traceback"]
            assert directory.result() is None
            assert checkpoint_steps(directory) == [3, 6]
            assert all(bool(v.isfinite().all()) for v in last_tensors(directory).values())
            rows = directory.metrics()
            assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
            assert all(math.isfinite(row["loss"]) for row in rows)


def test_an_absurd_rate_is_told_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(NotFinite) as caught:
        train(tiny(tmp_path, "training.lr=1e30", "training.steps=20"))
    assert 2 <= caught.value.step <= 5


def test_stopping_leaves_a_checkpoint(tmp_path: Path) -> None:
    config = tiny(tmp_path, "training.checkpoint_every=0")
    made = trainer(config)
    with pytest.raises(Interrupted, match="step 4 of 6"):
        made.train(lambda: made.step >= 4, lambda done, total, rate: None)
    assert checkpoint_steps(made.directory) == [4]
    steps: list[int] = []
    again = trainer(config)
    again.train(lambda: False, lambda done, total, rate: steps.append(done))
    assert steps == [5, 6]
    assert again.seconds > made.seconds  # of both attempts


def test_stopping_at_the_last_step_is_no_interruption(tmp_path: Path) -> None:
    made = trainer(tiny(tmp_path, "training.steps=1"))
    made.train(lambda: True, lambda done, total, rate: None)
    assert checkpoint_steps(made.directory) == [1]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    made = train(tiny(tmp_path))
    other = trainer(tiny(tmp_path, "seed=1"))
    made.directory.checkpoints.rename(other.directory.checkpoints)
    with pytest.raises(UserError, match=f"belongs to run {made.config.key}"):
        other.train(lambda: False, lambda done, total, rate: None)


def test_rows_after_the_checkpoint_are_forgotten_even_when_torn(tmp_path: Path) -> None:
    config = tiny(tmp_path, "training.checkpoint_every=2", "training.log_every=1")
    made = trainer(config)
    with pytest.raises(Interrupted):
        made.train(lambda: made.step >= 4, lambda done, total, rate: None)
    with made.directory.metrics_file.open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 1.0}) + '\n{"step": 6, "lo')
    rows = train(config).directory.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[4]["loss"] != 1.0


# ------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:x", "auto:1"])
def test_an_unknown_device(name: str) -> None:
    with pytest.raises(
        UserError, match=f"unknown --device '{name}'.* .choices: auto, cpu, cuda, mps"
    ):
        choose_device(name, "--device")


def test_a_device_that_is_not_there() -> None:
    told = r"training.device 'cuda:99' cannot be used here: PyTorch finds (no|\d+) CUDA devices$"
    with pytest.raises(UserError, match=told):
        choose_device("cuda:99")


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_trains_every_objective(tmp_path: Path, name: str) -> None:
    settings = (*taught(tmp_path, name), "training.log_every=1", "training.steps=3")
    half = train(tiny(tmp_path, *settings, "training.precision=bfloat16"))
    whole = train(tiny(tmp_path, *settings))
    assert {p.dtype for p in half.named.values()} == {torch.float32}
    assert not torch.equal(flat(half.net), flat(whole.net))  # it was asked for, and done
    for a, b in zip(half.directory.metrics(), whole.directory.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["shortcut"])  # all of them: test_compile.py
def test_a_compiled_network_trains_as_an_eager_one(
    tmp_path: Path, name: str, counters: Callable[[], dict[str, Any]]
) -> None:
    settings = ["training.steps=3", "training.log_every=1", ("objective", name)]
    eager = train(on_vectors(tmp_path, *settings))
    assert not counters()["stats"]
    compiled = train(on_vectors(tmp_path / "compiled", *settings, "training.compile=true"))
    seen = counters()
    assert seen["stats"]["unique_graphs"] >= 1  # else torch went back to eager, and said nothing
    assert not seen.get("unimplemented")
    torch.testing.assert_close(flat(compiled.net), flat(eager.net), rtol=1e-3, atol=1e-4)
    for a, b in zip(compiled.directory.metrics(), eager.directory.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert not any("_orig_mod" in name for name in last_tensors(compiled.directory))


def on_vectors(root: Path, *overrides: Override) -> RunConfig:
    small = ["data=gaussians", "backbone.width=16", "backbone.depth=1", "training.batch_size=16"]
    return compose([*small, "evaluation.steps=[]", ("runs", str(root)), *overrides])


@pytest.fixture
def counters() -> Iterator[Callable[[], dict[str, Any]]]:
    """What torch.compile counted since the test began."""
    import torch._dynamo.utils as dynamo

    torch._dynamo.reset()
    dynamo.counters.clear()
    yield lambda: {k: dict(v) for k, v in {"stats": {}, **dynamo.counters}.items()}
    torch._dynamo.reset()
