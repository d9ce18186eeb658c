"""What a run leaves on the disk, against what one has left."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import last_tensors, taught, tiny, train

from fewstep.experiments.cost.disk import cache_bytes, checkpoint_bytes, disk_use
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.data.latents import Latents
from fewstep.experiments.run import prepare, run


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("shortcut", ["objective.target_decay=0.9"]),  # a target network
        ("scm", ["training.optimiser=muon"]),  # weights learned beside; one moment for most
        ("sid", []),  # a companion with an optimiser
        ("progressive_distillation", ["training.ema=[0.9,0.99]"]),  # a snapshot, two averages
    ],
)
def test_a_checkpoint(tmp_path: Path, objective: str, settings: list[str]) -> None:
    config = tiny(tmp_path, *taught(tmp_path, objective), *settings)
    trained = train(config)
    saved = sum(x.nbytes for x in last_tensors(trained.directory).values())
    assert checkpoint_bytes(config, trained.dataset) == saved


def test_samples_and_pairs(tmp_path: Path) -> None:
    settings = (
        "evaluation.steps=[1,2]", "evaluation.samples=70", "training.checkpoint_every=2",
        "training.posthoc_ema=[0.05,0.1]", "training.posthoc_every=4",
        "evaluation.at_steps=[3]",
    )  # fmt: skip
    config = tiny(tmp_path, *taught(tmp_path, "reflow"), *settings)
    directory = prepare(config)
    run(directory)
    use = disk_use(config, config.data.load())
    assert use is not None
    assert use.total == sum(vars(use).values())
    sizes = {n: sum(f.stat().st_size for f in (directory.path / n).rglob("*") if f.is_file())
             for n in vars(use)}  # fmt: skip
    assert use.checkpoints < sizes["checkpoints"] < use.checkpoints * 1.3  # names and shapes
    assert use.weights < sizes["weights"] < use.weights * 1.3
    assert use.averages < sizes["averages"] < use.averages * 1.1
    assert use.pairs == 40 * (2 * 64 * 4 + 8) < sizes["pairs"] < use.pairs * 1.1
    assert use.samples == 4 * 64 * 64  # four cells of 64 images of 64 bytes, before compression


def test_the_cache_is_that_of_both_splits() -> None:
    expected = "4x8x8 classes=3 train=20 test=10"
    source = Latents(expected=expected)
    data = source.placeholder()
    assert data is not None
    assert cache_bytes(source, data) == 30 * (2 * 256 * 4 + 8)  # means, deviations, labels
    assert str(Expected.parse(expected)) == "20 + 10 of 4x8x8 with 3 classes"
