"""What a finished network is good at: where its loss lies, how it denoises, how far it jumps right.

Everything is measured on held-out data with the EMA weights in float32, and with draws of their
own (``seeds.generator``), so that all objectives of one seed see the same data and noise, and a
second look finds the same numbers.

- ``loss_by_log_snr``: the training loss by the signal-to-noise ratio it was taken at, the one axis
  that all paths share. Its level is the objective's own (weights, bootstrapping); its shape tells.
- ``loss_grid``: the same losses by time and jump length.
- ``denoising``: one step from each t to the data.
- ``jump_error``: the learned jump map against the exact flow map, where the data have one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments import checkpoint
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset, to_model, to_uint8
from fewstep.experiments.data.toy import HasMixture, coefficients
from fewstep.experiments.drawing import BatchedNet
from fewstep.experiments.network import build_network, choose_device, frozen, load_weights
from fewstep.experiments.rundir import Json, RunDirectory, write_json
from fewstep.experiments.seeds import Order, generator
from fewstep.experiments.teacher import load_teacher
from fewstep.files import replacing
from fewstep.objectives import Batch, Nets, Objective, Progress
from fewstep.objectives import Path as Interpolant
from fewstep.objectives.base import randint, randn

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


@dataclass(frozen=True)
class Diagnosis:
    """``facts`` for JSON; ``arrays`` with the pictures: clean, noisy and denoised examples.

    ``clean``: (n, ...) raw data; ``noisy``, ``denoised``: (times, n, ...), uint8 where the data
    are images, and ``t``: (times,).
    """

    facts: Json
    arrays: dict[str, NDArray[Any]]


def diagnose_run(directory: RunDirectory, config: RunConfig, rows: int = ROWS) -> Json:
    """Diagnose a finished run and write ``diagnostics/diagnostics.json`` and ``.npz``.

    Raises:
        UserError: it has no whole checkpoint, or none of its last step.
    """
    dataset = config.data.load()
    device = choose_device(config.training.device)
    nets = load_nets(config, dataset, directory, device)
    found = diagnose(config, dataset, nets, device, rows)
    directory.diagnostics.mkdir(exist_ok=True)
    with replacing(directory.diagnostics / "diagnostics.npz") as other, other.open("wb") as file:
        np.savez_compressed(file, **found.arrays)  # type: ignore[arg-type]
    facts = {"key": directory.key, "title": config.objective.title, **found.facts}
    write_json(directory.diagnostics / "diagnostics.json", facts)
    return facts


def is_current(facts: Json | None, config: RunConfig, rows: int = ROWS) -> bool:
    """Whether ``facts`` are what ``diagnose_run`` would find once more."""
    now = {"version": VERSION, "rows": rows, "step": config.training.steps}
    return facts is not None and all(facts.get(name) == value for name, value in now.items())


def load_nets(
    config: RunConfig, dataset: Dataset, directory: RunDirectory, device: torch.device
) -> Nets:
    """A finished run's networks as its held-out loss asks them: the EMA in the online one's place.

    Raises:
        UserError: no whole checkpoint, none of the last step, or a teacher that is gone.
    """
    found = checkpoint.load_latest(directory.checkpoints)
    if found is None or found.step != config.training.steps:
        told = "none" if found is None else f"one of step {found.step}"
        raise UserError(
            f"diagnostics of {directory.path} need a checkpoint of step {config.training.steps}, "
            f"found {told}: remove the run's result.json, and it is trained from there again"
        )

    def network(prefix: str) -> torch.nn.Module:
        made = build_network(config, dataset)
        load_weights(made, found, prefix)
        return frozen(made).to(device)

    learned = config.objective.learned_parts()
    if learned is not None:
        load_weights(learned, found, "learned")
        learned.requires_grad_(False).to(device)
    loaded = load_teacher(config, dataset) if config.objective.needs_teacher else None
    if loaded is not None:
        loaded[1].to(device)
    has_former = any(name.startswith("former.") for name in found.tensors)
    ema = network("ema")
    return Nets(
        online=ema,
        ema=ema,
        teacher=None if loaded is None else loaded[0],
        learned=learned,
        former=network("former") if has_former else None,
    )


def diagnose(
    config: RunConfig, dataset: Dataset, nets: Nets, device: torch.device, rows: int = ROWS
) -> Diagnosis:
    """Every diagnostic of the networks; the loss is taken on ``rows`` examples or a few more."""
    held_out = HeldOut(config, dataset, nets, device)
    taken = take_losses(config, nets, held_out, rows)
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
        "logs": taken.logs,
    }
    if isinstance(config.data, HasMixture):
        facts["jump_error"] = jump_errors(config, nets, dataset.num_classes > 0, device)
    return Diagnosis(facts, arrays)


class HeldOut:
    """Held-out examples as an objective trains on them: data, or pairs its teacher drew."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, nets: Nets, device: torch.device
    ) -> None:
        self.x, self.y, self.device = dataset.test.x, dataset.test.y, device
        self.eps: Tensor | None = None
        if config.objective.needs_pairs:
            assert nets.teacher is not None
            n = min(PAIRS, len(self.x))
            self.x, self.y = self.x[:n], None if self.y is None else self.y[:n]
            self.eps = randn(to_model(self.x), generator(config.seed, "diagnostics/pairs"))
            eps, y = self.eps.to(device), None if self.y is None else self.y.to(device)
            teacher = BatchedNet(nets.teacher, config.evaluation.batch_size)
            with torch.no_grad():
                self.x = config.objective.couple(teacher, eps, y).cpu()

    def __len__(self) -> int:
        return len(self.x)

    def __call__(self, index: Tensor) -> Batch:
        x = to_model(self.x[index]).to(self.device)
        y, eps = (None if a is None else a[index].to(self.device) for a in (self.y, self.eps))
        return Batch(x, y, eps=eps)


# ---- the loss -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """``per_sample``, ``t``: (N,) float64; ``d``: (N,) or None; ``logs``: means over batches."""

    per_sample: Tensor
    t: Tensor
    d: Tensor | None
    logs: dict[str, float]


@torch.no_grad()
def take_losses(config: RunConfig, nets: Nets, held_out: HeldOut, rows: int) -> Losses:
    """The objective's loss on at least ``rows`` held-out examples, in batches as in training."""
    training, device = config.training, held_out.device
    order = Order(config.seed, len(held_out), training.batch_size)
    progress = Progress(training.steps - 1, training.steps)  # of the last update
    batches = -(-rows // training.batch_size)
    columns: dict[str, list[Tensor]] = {"per_sample": [], "t": [], "d": []}
    logs: defaultdict[str, float] = defaultdict(float)
    for i in range(batches):
        g = generator(config.seed, "diagnostics/loss", i, device=device)
        loss = config.objective.loss(nets, held_out(order.batch(i)), progress, g)
        for name, column in columns.items():
            if (value := getattr(loss, name)) is not None:
                column.append(value.double().cpu())
        for name, value in loss.logs.items():
            logs[name] += float(value) / batches
    d = torch.cat(columns["d"]) if columns["d"] else None
    return Losses(torch.cat(columns["per_sample"]), torch.cat(columns["t"]), d, dict(logs))


def loss_by_log_snr(losses: Losses, path: Interpolant) -> list[Json]:
    """Mean, standard error and count of the loss in bins of log-SNR, open at both ends.

    ``low`` and ``high`` bound a bin, [low, high), and are None where it is open.
    """
    # a time of float32 may lie a rounding beyond pure noise, where alpha is just negative
    log_snr = path.log_snr(losses.t).nan_to_num(nan=-torch.inf)
    place = torch.bucketize(log_snr, torch.tensor(LOG_SNR_EDGES, dtype=log_snr.dtype), right=True)
    mean, error, count = binned(losses.per_sample, place, len(LOG_SNR_EDGES) + 1)
    bounds = (None, *LOG_SNR_EDGES, None)
    return [
        {"low": low, "high": high, "mean": m, "standard_error": e, "count": n}
        for low, high, m, e, n in zip(bounds[:-1], bounds[1:], mean, error, count, strict=True)
    ]


def loss_grid(losses: Losses, t_max: float) -> Json:
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
    return {
        "t_edges": [t_max * i / TIME_BINS for i in range(TIME_BINS + 1)],
        "d_edges": edges,
        "mean": [mean[i * TIME_BINS : (i + 1) * TIME_BINS] for i in range(rows)],
        "count": [count[i * TIME_BINS : (i + 1) * TIME_BINS] for i in range(rows)],
    }


def binned(
    values: Tensor, place: Tensor, bins: int
) -> tuple[list[float | None], list[float | None], list[int]]:
    """Mean, its standard error and the count in each bin; None for too few values (1; 2)."""
    count = torch.bincount(place, minlength=bins)
    mean = torch.bincount(place, values, bins) / count
    squares = torch.bincount(place, (values - mean[place]).square(), bins)
    error = (squares / (count - 1) / count).sqrt()
    return (
        [m if n else None for m, n in zip(mean.tolist(), count.tolist(), strict=True)],
        [e if n > 1 else None for e, n in zip(error.tolist(), count.tolist(), strict=True)],
        count.tolist(),
    )


# ---- one step to the data -----------------------------------------------------------------------


@torch.no_grad()
def one_step_denoising(
    config: RunConfig, dataset: Dataset, nets: Nets, held_out: HeldOut
) -> tuple[Json, dict[str, NDArray[Any]]]:
    """One step from x_t to the data, at 16 times up to t_max.

    Returns ``t`` and the RMS error to x per coordinate, in the network's units (images span
    [-1, 1]), and the first examples as ``Diagnosis.arrays``. Noise cannot be undone: even the best
    error grows with t.
    """
    objective, path = config.objective, config.objective.path
    batch = held_out(torch.arange(min(DENOISED, len(held_out))))
    g = generator(config.seed, "diagnostics/denoising", device=held_out.device)
    eps = randn(batch.x, g) if batch.eps is None else batch.eps
    net = BatchedNet(nets.ema, config.evaluation.batch_size)
    times = [path.t_max * (i + 1) / DENOISING_TIMES for i in range(DENOISING_TIMES)]
    errors, kept = [], IMAGES_KEPT if dataset.is_image else POINTS_KEPT
    noisy, denoised = [], []

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


# ---- against the exact flow ---------------------------------------------------------------------


def promised(objective: Objective) -> list[float]:
    """Lengths, as shares of t_max, of the jumps that should follow the flow of the *data*.

    A straightened flow, trained on pairs, ends where the data's flow does but gets there another
    way; other networks are left with a single jump from t_max.
    """
    straightened = objective.needs_pairs or objective.jump_is_flag
    only_whole = straightened or objective.reach == "once"
    return [2.0**-k for k in range(1 if only_whole else FINEST + 1)]


@torch.no_grad()
def jump_errors(config: RunConfig, nets: Nets, labels: bool, device: torch.device) -> list[Json]:
    """RMS error per coordinate of the jumps of each ``length``, a share of t_max.

    A jump of length d begins at a multiple of d, as in sampling with 1/d steps, from the exact
    distribution of x_t there; where jumps reach the data only, it begins at t = d. With ``labels``
    it is compared with the flow of the label's own mode. Guidance trained into a network makes it
    another flow, and so an error.
    """
    objective = config.objective
    assert isinstance(config.data, HasMixture)
    net = BatchedNet(nets.ema, config.evaluation.batch_size)
    found = []
    for length in promised(objective):
        exact = exact_jumps(config.data, objective.path, labels, objective.reach == "data", length)
        x_t, t, u = (tensor.to(device) for tensor in (exact.x_t, exact.t, exact.u))
        y = None if exact.y is None else exact.y.to(device)
        if objective.reach == "data":
            x_u = objective.denoise(net, x_t, t, y)
        else:
            x_u = objective.jump(net, x_t, t, u, y)
        rms = root_mean_square(x_u.double().cpu() - exact.x_u)
        found.append({"length": length, "rms": rms, "jumps": len(t)})
    return found


@dataclass(frozen=True, eq=False)
class Jumps:
    """``x_t`` and ``x_u`` (B, D) on one trajectory each, at times ``t``, ``u`` (B,); float32.

    ``x_u`` is float64. ``y``: (B,) the labels they belong to, or None.
    """

    x_t: Tensor
    x_u: Tensor
    t: Tensor
    u: Tensor
    y: Tensor | None


@cache
def exact_jumps(
    data: HasMixture, path: Interpolant, labels: bool, to_data: bool, length: float
) -> Jumps:
    """Jumps of one length along the exact flow: the same draws, and kept, for all runs."""
    mixture = data.mixture()
    x, modes = mixture.sample(JUMPS, seed=2)  # 0 and 1 made the two splits
    g = generator(0, "diagnostics/jumps")
    i = randint(0, torch.full((JUMPS,), round(1 / length)), g).to(x) * (not to_data)
    t, u = path.t_max * length * (i + 1), path.t_max * length * i
    x_t = path.mix(x, randn(x, g), t)
    if labels:
        x_u = mixture.mode_flow_map(x_t, modes, t, u, coefficients(path))
        return Jumps(x_t, x_u, t, u, modes)
    x_u = mixture.flow_map(x_t, t.double(), u.double(), coefficients(path))
    return Jumps(x_t, x_u, t, u, None)
