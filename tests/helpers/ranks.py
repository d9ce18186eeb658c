"""Several processes at work on one run, started as torchrun starts them, and what they report.

``python -m helpers.ranks STORY.json`` is one of them: it plays the scenes of the story, one after
the other, and leaves what came of each in a file of its own. The test process plays the same scenes
alone. All is computed in float64, on networks with nothing at 0, so that the two may differ by no
more than roundings. ``python -m helpers.ranks RUN`` is a worker whose memory gives out on rank 1.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from helpers.tiny import tiny
from torch import Generator, Tensor, nn

from fewstep.experiments import worker
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Rows
from fewstep.experiments.distributed import process_group
from fewstep.experiments.distributed.data_parallel import Disagreement
from fewstep.experiments.evaluation.sampling import SamplingConfig, draw
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training import trainer
from fewstep.experiments.training.network import load_network
from fewstep.experiments.training.trainer import Interrupted, Trainer
from fewstep.objectives import OBJECTIVES, Batch, FlowMatching, Loss, Nets, Progress
from fewstep.objectives.core.batch_math import full, mean_square, randn

TESTS = Path(__file__).resolve().parents[1]
SAMPLES, BATCH = 37, 10


@dataclass(frozen=True)
class Scene:
    """Train the run of ``overrides`` under ``root`` up to step ``until``, or to its end; sample."""

    name: str
    root: str
    overrides: list[Any]
    until: int = 0
    cells: list[dict[str, Any]] = field(default_factory=list)

    def config(self) -> RunConfig:
        return tiny(Path(self.root), *map(tuple_or_text, self.overrides))


def tuple_or_text(override: Any) -> Any:
    return tuple(override) if isinstance(override, list) else override


@dataclass(frozen=True)
class TwoCalls(FlowMatching):
    """Its loss goes back through one call of the network into another."""

    title: ClassVar[str] = "Two calls"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        first = nets.online(randn(x, g), full(0.9, x), y=y)
        turned = (first + x).flip(0)  # so that rows of one process come from rows of another
        second = nets.online(turned, full(0.4, x), y=None if y is None else y.flip(0))
        return Loss(mean_square(second - x) + mean_square(first), full(0.4, x))


@dataclass(frozen=True)
class Whimsical(FlowMatching):
    """Its loss depends on the process it is taken in."""

    title: ClassVar[str] = "Whimsical"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        loss = super().loss(nets, batch, progress, g)
        return replace(loss, per_sample=loss.per_sample * (1 + process_group.ranks().rank))


OWN = {"two_calls": TwoCalls(), "whimsical": Whimsical()}


@contextmanager
def in_float64() -> Iterator[None]:
    """Networks of float64 numbers, none of them 0, and an objective of the tests' own."""
    build, take = trainer.build_network, Trainer._batch

    def stirred(*about: Any) -> nn.Module:
        network = build(*about)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
        return network

    def doubled(self: Trainer, rows: Rows, purpose: str, index: int) -> Batch:
        batch = take(self, rows, purpose, index)
        eps = None if batch.eps is None else batch.eps.double()
        return Batch(batch.x.double(), batch.y, batch.y_true, eps)

    trainer.build_network = stirred
    Trainer._batch = doubled  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    for name, objective in OWN.items():
        OBJECTIVES.add(name, objective)
    try:
        yield
    finally:
        trainer.build_network = build
        Trainer._batch = take  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)
        for name in OWN:
            del OBJECTIVES._entries[name]


def play(scene: Scene) -> dict[str, Any]:
    """What comes of a scene: the losses, the gradients of the first step and the samples."""
    config = scene.config()
    directory = RunDirectory(Path(scene.root) / "loose" / config.key)
    directory.path.mkdir(parents=True, exist_ok=True)
    made = Trainer(config, config.data.load(), directory)
    found: dict[str, Any] = {"losses": [], "norms": []}
    update = made._update

    def watched() -> dict[str, Tensor]:
        logs = update()
        found["losses"].append(float(logs["loss"]))
        found["norms"].append(float(logs["grad_norm"]))
        if "gradients" not in found:
            trained = made.named | (made.companion.named if made.companion else {})
            found["gradients"] = {
                name: whole(p.grad) for name, p in trained.items() if p.grad is not None
            }
        return logs

    made._update = watched  # type: ignore[method-assign]
    made.prepare(lambda: False, lambda done, total, rate: None)
    try:
        made.train(lambda: made.step == scene.until, lambda done, total, rate: None)
    except Interrupted:
        assert made.step == scene.until
    except Disagreement as error:
        return {"error": str(error)}
    found["last"] = made.last
    network = load_network(config, made.dataset, directory, "raw")
    found["samples"] = [
        draw(config, made.dataset, network, SamplingConfig(**cell), SAMPLES, BATCH)
        for cell in scene.cells
    ]
    found["samples"] = [(drawn.x, drawn.nfe) for drawn in found["samples"]]
    return found


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


# ------------------------------------------------------------------------------------- processes


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(size: int, *arguments: object, **environment: str) -> list[subprocess.Popen[str]]:
    """``python ARGUMENTS`` ``size`` times, each told its place as torchrun tells it."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                **common,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """(exit status, output) of each; those still there after ``seconds`` are killed: a failure."""
    found = []
    try:
        for process in processes:
            out, _ = process.communicate(timeout=seconds)
            found.append((process.returncode, out))
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    return found


def played(scenes: Sequence[Scene], folder: Path, size: int = 2) -> list[dict[str, Any]]:
    """What each of ``size`` processes found, by the name of the scene."""
    story = folder / "story.json"
    story.write_text(json.dumps([asdict(scene) for scene in scenes]))
    for status, out in ends(start(size, "-m", "helpers.ranks", story), 900):
        assert status == 0, out
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(size)]


@dataclass(frozen=True)
class Exhausts(FlowMatching):
    """Rank 1 cannot take its second step."""

    title: ClassVar[str] = "Exhausts"

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        if process_group.ranks().rank == 1 and progress.step == 1:
            raise MemoryError("rank 1 has no memory left")
        return super().loss(nets, batch, progress, g)


def main() -> int:
    story = Path(sys.argv[1])
    if story.is_dir():
        OBJECTIVES.add("exhausts", Exhausts())
        return worker.main([str(story)])
    ranks = process_group.init_process_group()
    with in_float64():
        scenes = [Scene(**scene) for scene in json.loads(story.read_text())]
        found = {scene.name: play(scene) for scene in scenes}
    torch.save(found, story.with_name(f"found-{ranks.rank}.pt"))
    process_group.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
