"""What a finished network is good at: where its loss lies, how it denoises, how far it jumps right.

Everything is measured on held-out data with the EMA weights in float32, and with draws of its own
(``rng.generator``): all objectives of one seed see the same data and noise. Log-SNR is the one axis
that all paths share; the level of a loss is its objective's own (weights, bootstrapping).
"""

from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.experiments.config.data_location import load_data
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset, to_model, to_uint8
from fewstep.experiments.data.toy import HasMixture, coefficients
from fewstep.experiments.rng import Order, generator
from fewstep.experiments.store.json_files import Json, write_json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training import network as networks
from fewstep.experiments.training.teacher import load_teacher, weak_velocity
from fewstep.files import replacing
from fewstep.objectives import Batch, Loss, Nets, Objective, ProbabilityPath, Progress
from fewstep.objectives.core.batch_math import randint, randn
from fewstep.objectives.core.wrappers import BatchedNet

VERSION = 1
ROWS = 32_768  # examples the loss is taken on: a cell of the grid then holds some dozens
PAIRS = 2048  # at most so many (x, eps) pairs: each costs the teacher a whole trajectory
LOG_SNR_EDGES = tuple(float(edge) for edge in range(-12, 13))
TIME_BINS = 32
FINEST = 7  # jump lengths are told apart from t_max down to t_max / 2^7
DENOISING_TIMES = 16
DENOISED = 1024  # examples the denoising error is averaged over
IMAGES_KEPT, POINTS_KEPT = 8, 512
JUMPS = 2048  # of each length

Arrays = dict[str, NDArray[Any]]
"""Examples: ``clean`` (n, ...), ``noisy`` and ``denoised`` (times, n, ...), and ``t`` (times,)."""


def diagnose_run(directory: RunDirectory, config: RunConfig, rows: int = ROWS) -> Json:
    """Diagnose a finished run and write ``diagnostics/diagnostics.json`` and ``.npz``."""
    dataset = load_data(config, directory)
    device = networks.choose_device(config.training.device)
    nets = load_nets(config, dataset, directory, device)
    facts, arrays = diagnose(config, dataset, nets, device, rows)
    directory.diagnostics.mkdir(exist_ok=True)
    with replacing(directory.diagnostics / "diagnostics.npz") as other, other.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    facts = {"key": directory.key, "title": config.objective.title, **facts}
    write_json(directory.diagnostics / "diagnostics.json", facts)
    return facts


def is_current(facts: Json | None, config: RunConfig, rows: int = ROWS) -> bool:
    """Whether ``facts`` are what ``diagnose_run`` would find once more."""
    now = {"version": VERSION, "rows": rows, "step": config.training.steps}
    return facts is not None and all(facts.get(name) == value for name, value in now.items())


def load_nets(
    config: RunConfig, dataset: Dataset, directory: RunDirectory, device: torch.device
) -> Nets:
    """A finished run's networks as its held-out loss asks them: ``online`` is the EMA."""
    saved = networks.load_checkpoint(directory.checkpoints, config.training.steps)

    def network(prefix: str) -> torch.nn.Module:
        module = networks.build_saved(config, dataset, saved)
        networks.load_weights(module, saved, prefix)
        return networks.frozen_copy(module).to(device)

    auxiliary = config.objective.auxiliary_module()
    if auxiliary is not None:
        networks.load_weights(auxiliary, saved, "auxiliary")
        auxiliary.requires_grad_(False).to(device)
    objective = config.objective
    loaded = load_teacher(config, dataset, device) if objective.needs_teacher else None
    weak_teacher = weak_velocity(config, dataset, device)
    has_snapshot = any(name.startswith("snapshot.") for name in saved.tensors)
    ema, snapshot = network("ema"), network("snapshot") if has_snapshot else None
    target = ema if config.objective.target_decay is None else network("target")
    teacher = None if loaded is None else loaded.velocity
    companion = network("companion") if objective.companion_updates else None
    return Nets(ema, target, teacher, auxiliary, snapshot, weak_teacher, companion)


def diagnose(
    config: RunConfig, dataset: Dataset, nets: Nets, device: torch.device, rows: int = ROWS
) -> tuple[Json, Arrays]:
    """Every diagnostic of the networks; the loss is taken on ``rows`` examples or a few more."""
    held_out = HeldOut(config, dataset, nets, device)
    taken, logs = take_losses(config, nets, held_out, rows)
    path = config.objective.path
    denoising, arrays = one_step_denoising(config, dataset, nets, held_out)
    facts: Json = {
        "version": VERSION,
        "weights": "ema",
        "step": config.training.steps,
        "rows": rows,
        "t_max": path.t_max,
        "loss_by_log_snr": loss_by_log_snr(taken, path),
        "loss_grid": loss_grid(taken, path.t_max),
        "denoising": denoising,
        "logs": logs,
    }
    if isinstance(config.data, HasMixture):
        facts["jump_error"] = jump_errors(config, nets, dataset.num_classes > 0, device)
    return facts, arrays


class HeldOut:
    """Held-out examples as an objective trains on them: data, or pairs its teacher drew."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, nets: Nets, device: torch.device
    ) -> None:
        self.x, self.y, self.device = dataset.test.x, dataset.test.y, device
        self.eps: Tensor | None = None
        if config.objective.needs_pairs:
            n = min(PAIRS, len(self.x))
            self.x, self.y = self.x[:n], None if self.y is None else self.y[:n]
            self.eps = randn(to_model(self.x), generator(config.seed, "diagnostics/pairs"))
            eps, y = self.eps.to(device), None if self.y is None else self.y.to(device)
            teacher = BatchedNet(nets.teacher, config.evaluation.batch_size)
            with torch.no_grad():
                self.x = config.objective.make_pairs(teacher, eps, y).cpu()

    def __len__(self) -> int:
        return len(self.x)

    def __call__(self, index: Tensor) -> Batch:
        x = to_model(self.x[index]).to(self.device)
        y, eps = (None if a is None else a[index].to(self.device) for a in (self.y, self.eps))
        return Batch(x, y, eps=eps)


@torch.no_grad()
def take_losses(
    config: RunConfig, nets: Nets, held_out: HeldOut, rows: int
) -> tuple[Loss, dict[str, float]]:
    """The objective's loss on at least ``rows`` held-out examples, in batches as in training.

    In float64 on the CPU; and what it logs, averaged over the batches.
    """
    training, device = config.training, held_out.device
    order = Order(config.seed, len(held_out), training.batch_size)
    progress = Progress(training.steps - 1, training.steps)  # of the last update
    batches = -(-rows // training.batch_size)
    losses: list[Loss] = []
    logs: defaultdict[str, float] = defaultdict(float)
    for i in range(batches):
        g = generator(config.seed, "diagnostics/loss", i, device=device)
        losses.append(config.objective.loss(nets, held_out(order.batch(i)), progress, g))
        for name, value in losses[-1].logs.items():
            logs[name] += float(value) / batches
    per_sample, t = (
        torch.cat([getattr(loss, name).double().cpu() for loss in losses])
        for name in ("per_sample", "t")
    )
    d = [loss.d.double().cpu() for loss in losses if loss.d is not None]
    return Loss(per_sample, t, d=torch.cat(d) if d else None), dict(logs)


def loss_by_log_snr(losses: Loss, path: ProbabilityPath) -> list[Json]:
    """Mean, standard error and count of the loss in bins of log-SNR, open at both ends.

    ``low`` and ``high`` bound a bin, [low, high), and are None where it is open.
    """
    # a time of float32 may lie a rounding beyond pure noise, where alpha is just negative
    log_snr = path.log_snr(losses.t).nan_to_num(nan=-torch.inf)
    bins = torch.bucketize(log_snr, torch.tensor(LOG_SNR_EDGES, dtype=log_snr.dtype), right=True)
    mean, error, count = binned(losses.per_sample, bins, len(LOG_SNR_EDGES) + 1)
    bounds = (None, *LOG_SNR_EDGES, None)
    return [
        {"low": low, "high": high, "mean": m, "standard_error": e, "count": n}
        for low, high, m, e, n in zip(bounds[:-1], bounds[1:], mean, error, count, strict=True)
    ]


def loss_grid(losses: Loss, t_max: float) -> Json:
    """Mean loss in cells of time and jump length; None where nothing is trained.

    Column i holds t in (i, i + 1] t_max / 32, the first one t = 0 too. Row 0 holds d = 0, and row
    k the d up to ``d_edges[k]`` and above ``d_edges[k - 1]``, as shares of t_max. ``d_edges`` is
    None, and there is one row, where the objective has no jump length.
    """
    column = (losses.t / t_max * TIME_BINS).ceil().long().sub(1).clamp(0, TIME_BINS - 1)
    edges = None if losses.d is None else [0.0, *(2.0**-k for k in range(FINEST, -1, -1))]
    row = torch.zeros_like(column)
    if losses.d is not None:
        # a hair of tolerance: t - s in float32 may come out above the length it stands for
        share = losses.d / t_max * (1 - 1e-6)
        row = torch.bucketize(share, torch.tensor(edges, dtype=share.dtype))
        row = row.clamp(max=FINEST + 1)
    rows = 1 if edges is None else len(edges)
    mean, _, count = binned(losses.per_sample, row * TIME_BINS + column, rows * TIME_BINS)
    parts = [slice(i * TIME_BINS, (i + 1) * TIME_BINS) for i in range(rows)]
    return {
        "t_edges": [t_max * i / TIME_BINS for i in range(TIME_BINS + 1)],
        "d_edges": edges,
        "mean": [mean[part] for part in parts],
        "count": [count[part] for part in parts],
    }


def binned(
    values: Tensor, bins: Tensor, count: int
) -> tuple[list[float | None], list[float | None], list[int]]:
    """Mean, its standard error and the count in each bin; None for too few values (1; 2)."""
    counts = torch.bincount(bins, minlength=count)
    mean = torch.bincount(bins, values, count) / counts
    squares = torch.bincount(bins, (values - mean[bins]).square(), count)
    error = (squares / (counts - 1) / counts).sqrt()
    return (
        [m if n else None for m, n in zip(mean.tolist(), counts.tolist(), strict=True)],
        [e if n > 1 else None for e, n in zip(error.tolist(), counts.tolist(), strict=True)],
        counts.tolist(),
    )


@torch.no_grad()
def one_step_denoising(
    config: RunConfig, dataset: Dataset, nets: Nets, held_out: HeldOut
) -> tuple[Json, Arrays]:
    """One step from x_t to the data, at 16 times up to t_max.

    Returns ``t`` and the RMS error to x per coordinate, in the network's units (images span
    [-1, 1]), and the first examples. Noise cannot be undone: even the best error grows with t.
    """
    objective, path = config.objective, config.objective.path
    batch = held_out(torch.arange(min(DENOISED, len(held_out))))
    g = generator(config.seed, "diagnostics/denoising", device=held_out.device)
    eps = randn(batch.x, g) if batch.eps is None else batch.eps
    net = BatchedNet(nets.ema, config.evaluation.batch_size)
    times = [path.t_max * (i + 1) / DENOISING_TIMES for i in range(DENOISING_TIMES)]
    errors, noisy, denoised = [], [], []
    kept = IMAGES_KEPT if dataset.is_image else POINTS_KEPT

    def raw(x: Tensor) -> NDArray[Any]:
        return (to_uint8(x) if dataset.is_image else x)[:kept].cpu().numpy()

    for time in times:
        t = batch.x.new_full((len(batch.x),), time)
        x_t = path.mix(batch.x, eps, t)
        x = objective.denoise(net, x_t, t, batch.y)
        errors.append(root_mean_square(x - batch.x))
        noisy.append(raw(x_t))
        denoised.append(raw(x))
    arrays = {"t": np.array(times), "clean": raw(batch.x)}
    arrays |= {"noisy": np.stack(noisy), "denoised": np.stack(denoised)}
    return {"t": times, "rms": errors, "samples": len(batch.x)}, arrays


def root_mean_square(error: Tensor) -> float:
    """Over all entries, in float64."""
    return float(error.double().square().mean().sqrt())


def trained_jump_lengths(objective: Objective) -> list[float]:
    """Lengths, as shares of t_max, of the jumps that should follow the flow of the *data*.

    A straightened flow, trained on pairs, ends where the data's flow does but gets there another
    way; other networks are left with a single jump from t_max. Samples that match the data's
    distribution, by a companion, need not end where the flow does.
    """
    if objective.companion_updates:
        return []
    one_flow = not objective.jump_is_flag or objective.jump_range == "to_data"
    straightened = objective.needs_pairs or not one_flow
    only_whole = straightened or objective.jump_range == "one_step"
    return [2.0**-k for k in range(1 if only_whole else FINEST + 1)]


@torch.no_grad()
def jump_errors(config: RunConfig, nets: Nets, labels: bool, device: torch.device) -> list[Json]:
    """RMS error per coordinate of the jumps of each ``length``, a share of t_max.

    A jump of length d begins at a multiple of d, as in sampling with 1/d steps, from the exact
    distribution of x_t there; where jumps reach the data only, it begins at t = d. With ``labels``
    it is compared with the flow of the label's own mode. Guidance trained into a network makes it
    another flow, and so an error.
    """
    objective, path = config.objective, config.objective.path
    assert isinstance(config.data, HasMixture)
    net = BatchedNet(nets.ema, config.evaluation.batch_size)
    to_data = objective.jump_range == "to_data"
    errors = []
    for length in trained_jump_lengths(objective):
        start, end, modes = exact_jumps(config.data, path, labels, to_data, length)
        x_t, t, u = (tensor.to(device) for tensor in start)
        y = None if modes is None else modes.to(device)
        x_u = objective.denoise(net, x_t, t, y) if to_data else objective.jump(net, x_t, t, u, y)
        rms = root_mean_square(x_u.double().cpu() - end)
        errors.append({"length": length, "rms": rms, "jumps": len(end)})
    return errors


@cache
def exact_jumps(
    data: HasMixture, path: ProbabilityPath, labels: bool, to_data: bool, length: float
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor | None]:
    """Jumps of one length along the exact flow: the same draws, and kept, for all runs.

    Returns x_t (B, D), its times t and the jumps' ends u (B,); x_u (B, D) float64; labels or None.
    """
    mixture = data.mixture()
    x, modes = mixture.sample(JUMPS, seed=2)  # 0 and 1 made the two splits
    g = generator(0, "diagnostics/jumps")
    i = randint(0, torch.full((JUMPS,), round(1 / length)), g).to(x) * (not to_data)
    t, u = path.t_max * length * (i + 1), path.t_max * length * i
    x_t = path.mix(x, randn(x, g), t)
    if labels:
        return (x_t, t, u), mixture.mode_flow_map(x_t, modes, t, u, coefficients(path)), modes
    x_u = mixture.flow_map(x_t, t.double(), u.double(), coefficients(path))
    return (x_t, t, u), x_u, None
