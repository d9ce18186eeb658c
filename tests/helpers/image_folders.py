"""Folders of small PNGs, what they hold, and what a data set makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.experiments.data import Dataset
from fewstep.experiments.data.folder import ImageFolder


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(array)


def folder(root: Path, files: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    for name, seed in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, size).save(path)
    return root


def load(root: Path, **settings: object) -> Dataset:
    chosen = {"size": 8, "resize": "none", **settings}
    return ImageFolder(root=str(root.parent), folder=root.name, **chosen).load()  # type: ignore[arg-type]


def as_seen(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def pixels(seed: int) -> bytes:
    return np.asarray(picture(seed)).transpose(2, 0, 1).tobytes()
