"""What is done to a batch before a step: dropped labels, horizontal flips, EDM's augmentation.

The last (Karras et al. 2022, appendix F.2; after Karras et al. 2020a) does not leak: the network
is told what was done to an image as a condition of its own, of which 0 stands for nothing, and
nothing is what samples are drawn with. Unlike EDM's code, which resamples with sym6 wavelets, this
one takes bicubic interpolation at twice the resolution.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.config.settings import Training
from fewstep.experiments.data import Dataset
from fewstep.experiments.rng import generator
from fewstep.objectives import Batch
from fewstep.objectives.core.label_dropout import drop_conditions

LABELS = 9  # flips (2), scale, rotation (2), stretch (2), shift (2)
SCALE_STD, SHIFT_STD = 0.2, 0.125  # in octaves; in widths of the image


def check_augmentation(config: RunConfig, dataset: Dataset) -> None:
    """``UserError`` where the run's data cannot be flipped or augmented as its settings ask."""
    training, objective = config.training, config.objective
    settings = {"training.flip": training.flip, "training.augment": training.augment}
    for setting in (f"{name}={value}" for name, value in settings.items() if value):
        if not dataset.is_image:
            raise UserError(f"{setting} needs images, and {dataset.name} has none")
        if objective.needs_pairs:
            raise UserError(f"{setting}: the noise of a stored pair belongs to the image as it is")
    if not training.augment:
        return
    reasons = {
        "flips images itself: set training.flip to false": training.flip,
        f"needs square images, got {dataset.shape}": len(set(dataset.shape[1:])) > 1,
        "has no place beside condition vectors": dataset.condition_dim,
        "cannot be used with guidance in the training": objective.uses_guidance,
        "cannot be used with a teacher, which was not told of it": objective.needs_teacher,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(f"training.augment={training.augment:g} {reason}")


def randomised(config: RunConfig, batch: Batch, num_classes: int, step: int, g: Generator) -> Batch:
    """``batch`` as step ``step`` trains on it; ``g`` draws whose labels are dropped."""
    training, y = config.training, batch.y
    if y is not None and training.label_dropout:
        y = drop_conditions(y, training.label_dropout, num_classes, g)
    x, labels = changed(training, batch.x, config.seed, step)
    return Batch(x, labelled(y, labels), labelled(batch.y, labels), batch.eps)


def changed(training: Training, x: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
    """The images of a step as they are trained on, and the labels of what was done, if any."""
    if training.flip:
        return flipped(x, generator(seed, "flip", step, device=x.device)), None
    if training.augment:
        g = generator(seed, "augment", step, device=x.device)
        return augmented(x, training.augment, g)
    return x, None


def flipped(x: Tensor, g: Generator) -> Tensor:
    """(B, C, H, W) images, each mirrored from left to right with probability 1/2."""
    mirror = torch.rand(len(x), generator=g, device=x.device) < 0.5
    return torch.where(mirror[:, None, None, None], x.flip(3), x)


def augmented(x: Tensor, p: float, g: Generator) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) images, each changed in each way with probability ``p``, and (B, 9) labels.

    Left and right are swapped with probability 1/2, whatever p is, as in EDM's runs.
    """
    count, device = len(x), x.device

    def happens(share: float) -> Tensor:
        return (torch.rand(count, generator=g, device=device) < share).float()

    def normal() -> Tensor:
        return torch.randn(count, generator=g, device=device)

    def angle() -> Tensor:
        return (2 * torch.rand(count, generator=g, device=device) - 1) * math.pi

    mirror, upside = happens(0.5), happens(0.5) * happens(p)
    scale, turn = normal() * happens(p), angle() * happens(p)
    stretch, shift = normal() * happens(p), torch.stack([normal(), normal()], 1)
    axis = angle() * happens(0.5)
    shift = shift * happens(p)[:, None]
    x = torch.where(mirror.bool()[:, None, None, None], x.flip(3), x)
    x = torch.where(upside.bool()[:, None, None, None], x.flip(2), x)
    # from places in the new image to places in the old one, both in [-1, 1]
    zoom, longer = 2 ** (-SCALE_STD * scale), 2 ** (-SCALE_STD * stretch)
    back = _scaled(zoom, zoom) @ _turned(turn)
    back = back @ _turned(-axis) @ _scaled(longer, 1 / longer) @ _turned(axis)
    offset = -(back @ (2 * SHIFT_STD * shift)[:, :, None])
    moved = (scale != 0) | (turn != 0) | (stretch != 0) | (shift != 0).any(1)
    if bool(moved.any()):
        x = x.clone()
        x[moved] = _resampled(x[moved], torch.cat([back, offset], 2)[moved].to(x.dtype))
    labels = [mirror, upside, scale, turn.cos() - 1, turn.sin()]
    labels += [stretch * axis.cos(), stretch * axis.sin(), shift[:, 0], shift[:, 1]]
    return x, torch.stack(labels, 1)


def labelled(y: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Classes (B,) or None, and (B, 9) labels, as one condition (B, 10) of the network."""
    if labels is None:
        return y
    first = torch.zeros(len(labels), device=labels.device) if y is None else y.float()
    return torch.cat([first[:, None], labels], 1)


def _scaled(horizontal: Tensor, vertical: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([horizontal, vertical], 1))


def _turned(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _resampled(x: Tensor, places: Tensor) -> Tensor:
    """``x`` where ``places``, affine maps (B, 2, 3), say; beyond its edges, mirrored."""
    b, c, h, w = x.shape
    finer = nnf.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    grid = nnf.affine_grid(places, [b, c, 2 * h, 2 * w], align_corners=False)
    moved = nnf.grid_sample(finer, grid, "bicubic", "reflection", align_corners=False)
    return nnf.avg_pool2d(moved, 2)
