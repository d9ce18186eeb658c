"""The loop: one trainer for every objective, which it knows only as a loss.

Everything random in step i comes from (seed, i), and everything that carries over is in the
checkpoint, so that a run killed at any moment and run again ends with the same bits. All processes
of a run come through every line here, on the whole batch (``Trainer.parallel``); rank 0 writes.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.config.averages import Average, Power, exponential
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset, Rows, to_model
from fewstep.experiments.distributed import data_parallel
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.rng import Order, derive, generator
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training import checkpoint, posthoc_ema
from fewstep.experiments.training import teacher as teaching
from fewstep.experiments.training.augmentation import randomised
from fewstep.experiments.training.checkpoint import Checkpoint
from fewstep.experiments.training.companion import Companion, take_turns
from fewstep.experiments.training.initialisation import fill
from fewstep.experiments.training.learning_rate import learning_rate
from fewstep.experiments.training.microbatch import MicrobatchedNet
from fewstep.experiments.training.network import (
    build_network,
    checkpoint_activations,
    choose_device,
    frozen_copy,
    load_weights,
)
from fewstep.experiments.training.optimiser import Updater
from fewstep.experiments.training.prefetch import Source, loader
from fewstep.experiments.training.reflow_pairs import Pairs, stored_pairs
from fewstep.files import append, patiently, replacing
from fewstep.objectives import Batch, Loss, Net, Nets, Objective, Progress

VALIDATION_BATCHES = 4

TakeLoss = Callable[[Nets, Batch, Progress, torch.Generator], Loss]
OnStep = Callable[[int, int, float], None]
"""(steps done, of how many, steps a second)"""


class NotFinite(FloatingPointError):
    """The loss or its gradient stopped being a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step}")
        self.step = step


class Interrupted(Exception):
    """Asked to stop; a checkpoint was written, the run can be continued."""


class Trainer:
    """One run's training; ``train`` goes from the newest checkpoint to the last step."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        directory: RunDirectory,
        teacher: teaching.LoadedTeacher | None = None,
    ) -> None:
        """``teacher``: in place of the finished runs that the configuration names."""
        self.config, self.dataset, self.directory = config, dataset, directory
        self.training = config.training
        self.objective: Objective = config.objective
        self.device = choose_device(self.training.device)
        self.ranks = ranks()
        self.parallel = data_parallel.strategy(self.training.parallel, self.ranks, self.device)
        loaded = teacher or teaching.load_teacher(config, dataset, self.device)
        self.teacher = loaded.velocity if loaded and self.objective.needs_teacher else None
        self.weak_teacher = teaching.weak_velocity(config, dataset, self.device, teacher)
        self.form = teaching.first_form(config, loaded)
        self.net = build_network(config, dataset, self.form)
        if self.training.activation_checkpointing:
            checkpoint_activations(config, self.net)
        if loaded is not None and self.form.run is not None:
            fill(self.net, loaded.network, loaded.key)
        self.net.to(self.device)
        kept: list[Average] = [*exponential(self.training.ema, self.training.ema_warmup)]
        kept += map(Power, self.training.posthoc_ema)
        self.companion: Companion | None = None
        if self.objective.companion_updates:
            self.companion = Companion(config, self.parallel, copy.deepcopy(self.net))
        self.averages = [(a, self.parallel.wrap(frozen_copy(self.net))) for a in kept]
        self.ema = self.averages[0][1]
        apart = self.objective.target_decay is not None  # from what is evaluated
        self.target = self.parallel.wrap(frozen_copy(self.net)) if apart else None
        self.net = self.parallel.wrap(self.net)
        if self.companion is not None:
            take_turns(self.net, self.companion.net)
        self.snapshot: nn.Module | None = None
        self.pairs: Pairs | None = None
        auxiliary = self.objective.auxiliary_module()
        self.auxiliary = None if auxiliary is None else auxiliary.to(self.device)
        self.named = dict(self.net.named_parameters(prefix="net"))
        if self.auxiliary is not None:
            self.named.update(self.auxiliary.named_parameters(prefix="auxiliary"))
        self.parallel.watch(self.net, self.auxiliary)
        groups = self.parallel.groups(self.net, self.auxiliary)
        rules = config.optimiser.rules(self.net)
        own = [] if self.auxiliary is None else list(self.auxiliary.parameters())
        self.optimiser = Updater(config.optimiser, self.training, groups, rules, own)
        self.forward: Any = torch.compile(self.net) if self.training.compile else self.net
        self.loader = loader(config, dataset.train)
        self.step = 0
        self.seconds = 0.0
        self.aside = 0.0  # of those since it began: spent on other things than training
        self.last: dict[str, float] = {}
        self.first_nonfinite_step = torch.tensor(0, device=self.device)  # 0 for none

    def nets(self, online: Net) -> Nets:
        """What a loss may ask, with ``online`` in the first place."""
        shard = self.parallel.shard_batch
        frozen = self.teacher, self.snapshot, self.weak_teacher
        teacher, snapshot, weak = (None if net is None else shard(net) for net in frozen)
        target = self.ema if self.target is None else self.target
        trained, rows = shard(online), self.training.microbatch
        companion = None if self.companion is None else shard(self.companion.forward)
        if rows is not None:
            trained = MicrobatchedNet(trained, rows)
            if companion is not None:  # a loss may go back through its teacher, too
                companion = MicrobatchedNet(companion, rows)
                teacher = None if teacher is None else MicrobatchedNet(teacher, rows)
        return Nets(trained, shard(target), teacher, self.auxiliary, snapshot, weak, companion)

    def prepare(self, stop: Callable[[], bool], on_block: OnStep) -> None:
        """Draw the pairs that an objective trains on; ``Interrupted`` if ``stop()`` became true."""
        if not self.objective.needs_pairs:
            return
        assert self.teacher is not None
        begun, teacher = time.perf_counter(), self.parallel.shard_batch(self.teacher)

        def watched(x: Tensor, t: Tensor, d: Any = None, y: Tensor | None = None) -> Tensor:
            if stop():  # a block may take minutes
                raise Interrupted("stopped while pairs were drawn; whole blocks are kept")
            return teacher(x, t, d, y)

        self.pairs = stored_pairs(
            self.directory.pairs, self.objective, watched, self.dataset,
            self.config.seed, self.objective.pairs, self.device,
            lambda blocks, total: on_block(blocks, total, blocks / (time.perf_counter() - begun)),
        )  # fmt: skip
        self.loader = loader(self.config, self.pairs)

    def train(self, stop: Callable[[], bool], on_step: OnStep) -> None:
        """Train to the last step; raises ``NotFinite``, or ``Interrupted`` by ``stop()``."""
        total = self.training.steps
        if not self._restore() and self.ranks.is_main:
            self.directory.metrics_file.unlink(missing_ok=True)
        self._trim_metrics()
        begun, step_begun, seconds_begun = time.perf_counter(), self.step, self.seconds
        while self.step < total:
            logs = self._update()
            elapsed = time.perf_counter() - begun - self.aside
            self.seconds = seconds_begun + elapsed
            self._log(logs)
            on_step(self.step, total, (self.step - step_begun) / elapsed)
            if self._is_due(self.training.posthoc_every) and self.training.posthoc_ema:
                self._store_averages()  # before a checkpoint that training goes on from
            if self.step in self.config.evaluation.at_steps:
                self._keep_weights()  # likewise
            interrupted = stop() and self.step < total
            if interrupted or self._is_due(self.training.checkpoint_every):
                self._check_finite()
                self._save()
            if interrupted:
                raise Interrupted(f"stopped at step {self.step} of {total}")

    def _update(self) -> dict[str, Tensor]:
        training, step = self.training, self.step
        torch.manual_seed(derive(self.config.seed, "dropout", step))
        g = generator(self.config.seed, "train", step, device=self.device)
        progress = Progress(step, training.steps)
        if self.objective.takes_snapshot(progress):
            self.snapshot = self._copy_network()
        batch = self._batch(self.loader.rows(step), "train", step)
        batch = randomised(self.config, batch, self.dataset.num_classes, step, g)
        logs = {} if self.companion is None else self._update_companion(batch, progress)
        mean, extra = self._loss(self.objective.loss, self.forward, batch, progress, g)
        norm = self._back(mean, self.named)
        logs = {"loss": mean.detach(), "grad_norm": norm, **extra, **logs}
        rates = (learning_rate(training, step, peak) for peak in (None, training.auxiliary_lr))
        self.optimiser.step(*rates)
        for average, network in self.averages:
            self._average(network, average.factor(step))
        if self.target is not None:
            decay = self.objective.target_decay_at(progress)
            assert decay is not None, "an objective with a target_decay has one at every step"
            self._average(self.target, decay)
        self.step += 1
        return logs

    def _back(self, loss: Tensor, named: Mapping[str, nn.Parameter]) -> Tensor:
        """Leave the gradients of ``loss``, clipped; returns their norm before."""
        for parameter in named.values():
            parameter.grad = None
        loss.backward()
        self.parallel.sum_gradients()
        norm = self.parallel.clip(named.values(), self.training.clip or math.inf).detach()
        bad = ~torch.isfinite(loss.detach() + norm) & (self.first_nonfinite_step == 0)
        self.first_nonfinite_step = torch.where(bad, self.step + 1, self.first_nonfinite_step)
        if self.device.type == "cpu":  # elsewhere a look waits for the device: now and then will do
            self._check_finite()
        return norm

    def _update_companion(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """All its updates of a step; the logs of the last one."""
        companion, step = self.companion, progress.step
        assert companion is not None
        rate = learning_rate(self.training, step, self.training.companion_lr)
        take_turns(companion.net, self.net)
        for k in range(self.objective.companion_updates):
            g = generator(self.config.seed, f"companion/{k}", step, device=self.device)
            take = self.objective.companion_loss
            mean, extra = self._loss(take, self.forward, batch, progress, g)
            norm = self._back(mean, companion.named)
            companion.optimiser.step(rate)
        take_turns(self.net, companion.net)
        logs = {"loss": mean.detach(), "grad_norm": norm, **extra}
        return {f"companion_{name}": value for name, value in logs.items()}

    @torch.no_grad()
    def _average(self, average: nn.Module, decay: float) -> None:
        ours, net = (self.parallel.local_shards(n.parameters()) for n in (average, self.net))
        torch._foreach_lerp_(ours, net, 1 - decay)

    def _store_averages(self) -> None:
        stored = {
            average.name: {n: self.parallel.full_tensor(p) for n, p in net.named_parameters()}
            for average, net in self.averages
            if isinstance(average, Power)
        }
        if self.ranks.is_main:
            patiently(lambda: posthoc_ema.store(self.directory.averages, self.step, stored))

    def _keep_weights(self) -> None:
        self._check_finite()
        kept = self._checkpoint(self._evaluated())
        if self.ranks.is_main:
            patiently(lambda: checkpoint.write(self.directory.weights, kept))

    def _loss(
        self, take: TakeLoss, net: Net, batch: Batch, progress: Progress, g: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        half = self.training.precision != "float32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss = take(self.nets(net), batch, progress, g)
        return loss.per_sample.float().mean(), loss.logs

    def _copy_network(self) -> nn.Module:
        if self.parallel.replicated:
            return frozen_copy(self.net)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # what is split cannot be copied: it is built again
            built = build_network(self.config, self.dataset, self.form)
            twin = frozen_copy(built).to(self.device)
        twin = self.parallel.wrap(twin)
        with torch.no_grad():
            for kind in (nn.Module.parameters, nn.Module.buffers):
                for mine, its in zip(kind(twin), kind(self.net), strict=True):
                    mine.copy_(its)
        return twin

    def _check_finite(self) -> None:
        if step := int(self.first_nonfinite_step):
            raise NotFinite(step)

    def _batch(self, rows: Rows, purpose: str, index: int) -> Batch:
        """``rows`` as the network takes them; ``purpose`` and ``index`` say what is drawn."""
        x, y, std, eps = (None if a is None else a.to(self.device) for a in rows)
        assert x is not None
        x = to_model(x)
        if std is not None:
            g = generator(self.config.seed, f"{purpose}/posterior", index, device=self.device)
            x = x + std.float() * torch.randn(x.shape, generator=g, device=self.device)
        return Batch(x, y, None if eps is None else y, eps)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The objective's loss of the EMA weights on held-out data, always with the same draws.

        On the first of the pairs, where an objective trains on them: none are held out.
        """
        source: Source = self.dataset.test if self.pairs is None else self.pairs
        group = self.objective.group_size
        size = max(1, min(self.training.batch_size, len(source)) // group) * group
        order = Order(self.config.seed, len(source), size)
        step = max(0, self.step - 1)  # of the last update: schedules stand there
        total = 0.0
        for i in range(VALIDATION_BATCHES):
            g = generator(self.config.seed, "validation", i, device=self.device)
            batch = self._batch(source.rows(order.batch(i)), "validation", i)
            progress = Progress(step, self.training.steps, turn=i)
            total += float(self._loss(self.objective.loss, self.ema, batch, progress, g)[0])
        return total / VALIDATION_BATCHES

    def _is_due(self, every: int) -> bool:
        """Whether what is done ``every`` so many steps, and at the last one, is done now."""
        return self.step == self.training.steps or (bool(every) and self.step % every == 0)

    def _log(self, logs: dict[str, Tensor]) -> None:
        validates = self._is_due(self.training.validate_every)
        if not (validates or self._is_due(self.training.log_every)):
            return
        self._check_finite()
        row = {name: float(value) for name, value in logs.items()}
        self.parallel.check(row["loss"])
        if validates:
            row["validation_loss"] = self.validation_loss()
        self.last = row
        if not self.ranks.is_main:
            return
        line = {
            "step": self.step,
            "images_seen": self.step * self.training.batch_size,
            "seconds": round(self.seconds, 3),
            "lr": learning_rate(self.training, self.step - 1),
            **row,
        }
        patiently(lambda: append(self.directory.metrics_file, json.dumps(line) + "\n"))

    def _trim_metrics(self) -> None:
        if not self.ranks.is_main:
            return
        # of later steps, which are about to be run again, nothing stays
        kept = [row for row in self.directory.metrics() if row["step"] <= self.step]
        if kept or self.directory.metrics_file.exists():
            with replacing(self.directory.metrics_file) as other:  # it may be killed here too
                other.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def _evaluated(self) -> dict[str, nn.Module]:
        """The network and its averages, by the names that they are evaluated by."""
        return {"net": self.net, **{average.name: net for average, net in self.averages}}

    def _save(self) -> None:
        modules = self._evaluated()
        modules |= {"auxiliary": self.auxiliary} if self.auxiliary is not None else {}
        modules |= {"target": self.target} if self.target is not None else {}
        modules |= {"companion": self.companion.net} if self.companion is not None else {}
        modules |= {"snapshot": self.snapshot} if self.snapshot is not None else {}
        slots = self.optimiser.saved(self.named)
        if self.companion is not None:
            slots |= self.companion.optimiser.saved(self.companion.named)
        saved = self._checkpoint(modules, slots)
        if self.ranks.is_main:
            patiently(lambda: checkpoint.save(self.directory.checkpoints, saved))
        self.ranks.broadcast(self.step)  # nobody leaves before it is written

    def _checkpoint(
        self, modules: Mapping[str, nn.Module], more: Mapping[str, Tensor] = {}
    ) -> Checkpoint:
        """Of ``modules`` by name, and ``more`` tensors. Collective."""
        tensors = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
        whole = {name: self.parallel.full_tensor(x) for name, x in {**tensors, **more}.items()}
        state: Json = {"key": self.config.key, "seconds": self.seconds, "last": self.last}
        if self.form.record is not None:
            state["initialised"] = self.form.record
        return Checkpoint(self.step, whole, state)

    def _restore(self) -> bool:
        saved = checkpoint.load_latest(self.directory.checkpoints)
        if saved is None:
            return False
        path, key, due = self.directory.path, saved.state["key"], self.config.key
        if key != due:
            raise UserError(f"the checkpoint in {path} belongs to run {key}, expected {due}")
        distribute = self.parallel.distribute
        load_weights(self.net, saved, "net", distribute)
        for average, network in self.averages:
            load_weights(network, saved, average.name, distribute)
        if self.target is not None:
            load_weights(self.target, saved, "target", distribute)
        if self.auxiliary is not None:
            load_weights(self.auxiliary, saved, "auxiliary")
        if self.companion is not None:
            self.companion.restore(saved, distribute)
        if any(name.startswith("snapshot.") for name in saved.tensors):
            self.snapshot = self._copy_network()
            load_weights(self.snapshot, saved, "snapshot", distribute)
        self.optimiser.restore(self.named, saved.tensors, distribute)
        self.step = saved.step
        self.seconds = float(saved.state["seconds"])
        self.last = dict(saved.state["last"])
        return True
