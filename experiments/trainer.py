"""The loop: one trainer for every objective, which it knows only as a loss.

Everything random in step i comes from (seed, i), and everything that carries over is in the
checkpoint, so that a run killed at any moment and run again ends with the same bits.

Several processes may train one run (distributed.py). All of them come through every line here, on
the whole batch; what they share lies behind ``Trainer.parallel``, and the first one writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments import checkpoint, parallel
from fewstep.experiments.checkpoint import Checkpoint
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset, Rows, to_model
from fewstep.experiments.distributed import ranks
from fewstep.experiments.loader import Loader, Source
from fewstep.experiments.network import (
    build_network,
    check_checkpointing,
    choose_device,
    frozen,
    load_weights,
)
from fewstep.experiments.pairs import Pairs, stored_pairs
from fewstep.experiments.rundir import RunDirectory
from fewstep.experiments.seeds import Order, derive, generator
from fewstep.experiments.settings import Training
from fewstep.experiments.teacher import load_teacher, spec_of, starts_alike, teacher_directory
from fewstep.files import replacing
from fewstep.objectives import Batch, Net, Nets, Objective, Progress, Teacher

VALIDATION_BATCHES = 4

OnStep = Callable[[int, int, float], None]
"""(steps done, of how many, steps a second)"""


class NotFinite(FloatingPointError):
    """The loss or its gradient stopped being a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step}")
        self.step = step


class Interrupted(Exception):
    """Asked to stop; a checkpoint was written, the run can be continued."""


def learning_rate(training: Training, step: int) -> float:
    """The rate of update number ``step``, counted from 0."""
    warm = min(1.0, (step + 1) / (training.warmup + 1))
    if training.schedule == "constant":
        return training.lr * warm
    done = max(0, step - training.warmup) / max(1, training.steps - training.warmup)
    return training.lr * warm * (1 + math.cos(math.pi * done)) / 2


class Trainer:
    """One run's training; ``train`` goes from the newest checkpoint to the last step."""

    def __init__(self, config: RunConfig, dataset: Dataset, directory: RunDirectory) -> None:
        self.config, self.dataset, self.directory = config, dataset, directory
        self.training = config.training
        self.objective: Objective = config.objective
        self.device = choose_device(self.training.device)
        self.ranks = ranks()
        self.parallel = parallel.choose(self.training, self.ranks, self.device)
        self.net = build_network(config, dataset).to(self.device)
        self.teacher = self._teacher()
        self.ema = self.parallel.spread(frozen(self.net))
        self.net = self.parallel.spread(self.net)
        self.former: nn.Module | None = None
        self.pairs: Pairs | None = None
        learned = self.objective.learned_parts()
        self.learned = None if learned is None else learned.to(self.device)
        self.named = dict(self.net.named_parameters(prefix="net"))
        if self.learned is not None:
            self.named.update(self.learned.named_parameters(prefix="learned"))
        self.parallel.watch(self.net, self.learned)
        self.optimiser = torch.optim.AdamW(
            [{"params": group} for group in self.parallel.groups(self.net, self.learned)],
            lr=self.training.lr,
            betas=(self.training.betas[0], self.training.betas[1]),
            eps=self.training.eps,
            weight_decay=self.training.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        if self.training.activation_checkpointing:
            check_checkpointing(self.net, config)
            self.net.checkpointing = True  # type: ignore[assignment]
        self.forward: Any = torch.compile(self.net) if self.training.compile else self.net
        self.loader = self._loader(dataset.train)
        self.step = 0
        self.seconds = 0.0
        self.aside = 0.0  # of those since it began: spent on other things than training
        self.last: dict[str, float] = {}
        self.first_bad = torch.tensor(0, device=self.device)  # step of the first NaN, 0 for none

    def _teacher(self) -> Teacher | None:
        """The teacher; its weights become the network's first ones where that is asked."""
        loaded = load_teacher(self.config, self.dataset)
        if loaded is None:
            return None
        teacher, network = loaded
        network.to(self.device)
        directory = teacher_directory(self.config)
        assert directory is not None
        alike = starts_alike(self.config, spec_of(directory))
        if alike and self.training.init != "random":
            # a jump embedding that the teacher lacks keeps its own first weights
            self.net.load_state_dict(network.state_dict(), strict=False)
        return teacher

    def nets(self, online: Net) -> Nets:
        """What a loss may ask, with ``online`` in the first place."""
        share = self.parallel.share
        teacher = None if self.teacher is None else share(self.teacher)
        former = None if self.former is None else share(self.former)
        return Nets(share(online), share(self.ema), teacher, self.learned, former)

    # ---- the loop ------------------------------------------------------------------------------

    def prepare(self, stop: Callable[[], bool], on_block: OnStep) -> None:
        """Draw the pairs of an objective that trains on them; nothing for the others.

        Raises:
            Interrupted: ``stop()`` became true; the pairs drawn so far are kept.
        """
        if not self.objective.needs_pairs:
            return
        assert self.teacher is not None
        begun, count = time.perf_counter(), self.objective.pairs

        teacher, seed = self.parallel.share(self.teacher), self.config.seed

        def watched(
            x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
        ) -> Tensor:
            if stop():  # a block may take minutes
                raise Interrupted("stopped while pairs were drawn; whole blocks are kept")
            return teacher(x, t, d, y)

        self.pairs = stored_pairs(
            self.directory.pairs, self.objective, watched, self.dataset, seed, count, self.device,
            lambda blocks, total: on_block(blocks, total, blocks / (time.perf_counter() - begun)),
        )  # fmt: skip
        self.loader = self._loader(self.pairs)

    def train(self, stop: Callable[[], bool], on_step: OnStep) -> None:
        """Train to the last step.

        Raises:
            NotFinite: the loss or gradient norm of a step is NaN or infinite.
            Interrupted: ``stop()`` became true; a checkpoint of the step reached was written.
        """
        total, every = self.training.steps, self.training.checkpoint_every
        if not self._restore() and self.ranks.first:
            self.directory.metrics_file.unlink(missing_ok=True)
        self._trim_metrics()
        begun, step_begun, seconds_begun = time.perf_counter(), self.step, self.seconds
        while self.step < total:
            logs = self._update()
            elapsed = time.perf_counter() - begun - self.aside
            self.seconds = seconds_begun + elapsed
            self._log(logs)
            on_step(self.step, total, (self.step - step_begun) / elapsed)
            interrupted = stop() and self.step < total
            if self.step == total or interrupted or (every and self.step % every == 0):
                self._check_finite()
                self._save()
            if interrupted:
                raise Interrupted(f"stopped at step {self.step} of {total}")

    def _update(self) -> dict[str, Tensor]:
        training, step = self.training, self.step
        torch.manual_seed(derive(self.config.seed, "dropout", step))
        g = generator(self.config.seed, "train", step, device=self.device)
        progress = Progress(step, training.steps)
        if self.objective.freezes(progress):
            self.former = self._twin()
        batch = self._batch(self.loader.rows(step), "train", step)
        dropped = self._drop_labels(batch.y, g)
        batch = Batch(batch.x, dropped, batch.y, batch.eps)
        with self._autocast():
            loss = self.objective.loss(self.nets(self.forward), batch, progress, g)
        mean = loss.per_sample.float().mean()
        self.optimiser.zero_grad(set_to_none=True)
        mean.backward()
        self.parallel.sum_gradients()
        norm = self.parallel.clip(self.named.values(), training.clip or math.inf)
        logs = {"loss": mean.detach(), "grad_norm": norm.detach(), **loss.logs}
        bad = ~torch.isfinite(mean.detach() + norm) & (self.first_bad == 0)
        self.first_bad = torch.where(bad, step + 1, self.first_bad)
        if self.device.type == "cpu":  # elsewhere a look waits for the device: now and then will do
            self._check_finite()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(training, step)
        self.optimiser.step()
        decay = min(training.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            here = self.parallel.here
            torch._foreach_lerp_(
                here(self.ema.parameters()), here(self.net.parameters()), 1 - decay
            )
        self.step += 1
        return logs

    def _twin(self) -> nn.Module:
        """A copy of the network as it is now, that takes no gradients."""
        if self.parallel.whole_here:
            return frozen(self.net)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # what is split cannot be copied: it is built again
            twin = frozen(build_network(self.config, self.dataset)).to(self.device)
        twin = self.parallel.spread(twin)
        with torch.no_grad():
            for kind in (nn.Module.parameters, nn.Module.buffers):
                for mine, its in zip(kind(twin), kind(self.net), strict=True):
                    mine.copy_(its)
        return twin

    def _check_finite(self) -> None:
        if step := int(self.first_bad):
            raise NotFinite(step)

    def _loader(self, source: Source) -> Loader:
        order = Order(self.config.seed, len(source), self.training.batch_size)
        return Loader(source, order, self.training.steps)

    def _batch(self, rows: Rows, purpose: str, index: int) -> Batch:
        """``rows`` as the network takes them; ``purpose`` and ``index`` say what is drawn."""
        x, y, std, eps = (None if a is None else a.to(self.device) for a in rows)
        assert x is not None
        x = to_model(x)
        if std is not None:
            g = generator(self.config.seed, f"{purpose}/posterior", index, device=self.device)
            x = x + std.float() * torch.randn(x.shape, generator=g, device=self.device)
        return Batch(x, y, None if eps is None else y, eps)

    def _drop_labels(self, y: Tensor | None, g: torch.Generator) -> Tensor | None:
        if y is None or not self.training.label_dropout:
            return y
        dropped = torch.rand(len(y), generator=g, device=y.device) < self.training.label_dropout
        return y.masked_fill(dropped, self.dataset.num_classes)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # ---- the held-out loss ---------------------------------------------------------------------

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The objective's loss of the EMA weights on held-out data, always with the same draws.

        On the first of the pairs, where an objective trains on them: none are held out.
        """
        source: Source = self.dataset.test if self.pairs is None else self.pairs
        size = min(self.training.batch_size, len(source))
        order = Order(self.config.seed, len(source), size)
        total = 0.0
        for i in range(VALIDATION_BATCHES):
            g = generator(self.config.seed, "validation", i, device=self.device)
            batch = self._batch(source.rows(order.batch(i)), "validation", i)
            with self._autocast():
                loss = self.objective.loss(self.nets(self.ema), batch, self._progress(), g)
            total += float(loss.per_sample.float().mean())
        return total / VALIDATION_BATCHES

    def _progress(self) -> Progress:
        """Of the update last made."""
        return Progress(max(0, self.step - 1), self.training.steps)

    # ---- records -------------------------------------------------------------------------------

    def _log(self, logs: dict[str, Tensor]) -> None:
        last = self.step == self.training.steps
        log, validate = self.training.log_every, self.training.validate_every
        due = bool(log) and self.step % log == 0
        validation_due = bool(validate) and self.step % validate == 0
        if not (due or validation_due or last):
            return
        self._check_finite()
        row = {name: float(value) for name, value in logs.items()}
        self.parallel.check(row["loss"])
        if validation_due or last:
            row["validation_loss"] = self.validation_loss()
        self.last = row
        if not self.ranks.first:
            return
        line = {
            "step": self.step,
            "images_seen": self.step * self.training.batch_size,
            "seconds": round(self.seconds, 3),
            "lr": learning_rate(self.training, self.step - 1),
            **row,
        }
        with self.directory.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _trim_metrics(self) -> None:
        """Forget what was logged after the checkpoint: those steps are about to be run again."""
        if not self.ranks.first:
            return
        kept = [row for row in self.directory.metrics() if row["step"] <= self.step]
        if kept or self.directory.metrics_file.exists():
            with replacing(self.directory.metrics_file) as other:  # it may be killed here too
                other.write_text("".join(json.dumps(row) + "\n" for row in kept))

    # ---- checkpoints ---------------------------------------------------------------------------

    def _save(self) -> None:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        if self.learned is not None:
            tensors |= {f"learned.{k}": v for k, v in self.learned.state_dict().items()}
        if self.former is not None:
            tensors |= {f"former.{k}": v for k, v in self.former.state_dict().items()}
        for name, parameter in self.named.items():
            for slot, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{slot}.{name}"] = value
        tensors = {name: self.parallel.whole(tensor) for name, tensor in tensors.items()}
        state = {"key": self.config.key, "seconds": self.seconds, "last": self.last}
        if self.ranks.first:
            checkpoint.save(self.directory.checkpoints, Checkpoint(self.step, tensors, state))
        self.ranks.told(self.step)  # nobody leaves before it is written

    def _restore(self) -> bool:
        found = checkpoint.load_latest(self.directory.checkpoints)
        if found is None:
            return False
        if found.state["key"] != self.config.key:
            raise UserError(
                f"the checkpoint in {self.directory.path} belongs to run {found.state['key']}, "
                f"expected {self.config.key}"
            )
        place = self.parallel.placed
        load_weights(self.net, found, "net", place)
        load_weights(self.ema, found, "ema", place)
        if self.learned is not None:
            load_weights(self.learned, found, "learned")
        if any(name.startswith("former.") for name in found.tensors):
            self.former = self._twin()
            load_weights(self.former, found, "former", place)
        for name, parameter in self.named.items():
            self.optimiser.state[parameter] = {
                slot: self._placed(slot, found.tensors[f"optimiser.{slot}.{name}"], parameter)
                for slot in ("step", "exp_avg", "exp_avg_sq")
            }
        self.step = found.step
        self.seconds = float(found.state["seconds"])
        self.last = dict(found.state["last"])
        return True

    def _placed(self, slot: str, value: Tensor, parameter: Tensor) -> Tensor:
        # AdamW counts steps in a tensor: on the CPU, unless it is the fused one of a GPU
        if slot == "step":
            return value.to(self.device) if self.device.type == "cuda" else value
        return self.parallel.placed(value.to(self.device), parameter)
