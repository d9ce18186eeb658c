"""DINOv2 features (Oquab et al. 2023), through transformers (extra ``fewstep[dinov2]``).

Stein et al. 2023 (arXiv:2306.04675) found distances in them to follow human judgement closer than
Inception's. Theirs are the class token's of ViT-L/14, of images resized to 224 x 224.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.experiments.data import Dataset, to_model
from fewstep.experiments.extractors import base
from fewstep.files import resolved

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
FILES = ("config.json", "model.safetensors")


@base.EXTRACTORS.register("dinov2")
@dataclass(frozen=True)
class DINOv2:
    """The class token of a DINOv2 in a local folder, after an antialiased bicubic resize.

    Attributes:
        path: folder with config.json and model.safetensors, as transformers saves it.
        sha256: what model.safetensors must be, or nothing.
        size: side that images are resized to. batch_size: images at a time.
    """

    path: str = ""
    sha256: str = ""
    size: int = 224
    batch_size: int = 50

    def __post_init__(self) -> None:
        check_range("extractor.size", self.size, 14)

    def check(self, dataset: Dataset) -> None:
        base.check_images("dinov2", dataset, rgb=True)
        if not self.path:
            raise UserError(
                "extractor dinov2 needs its weights: write {name: dinov2, path: FOLDER}, "
                f"a folder with {' and '.join(FILES)}"
            )
        if importlib.util.find_spec("transformers") is None:
            raise UserError("extractor dinov2 needs transformers: pip install 'fewstep[dinov2]'")
        for name in FILES:
            if not (resolved(self.path) / name).is_file():
                raise UserError(
                    f"extractor dinov2: no file {name} in {self.path}; nothing is downloaded"
                )

    def content(self) -> str | None:
        return base.content_sha256(resolved(self.path) / name for name in FILES)

    def prepare(self, dataset: Dataset, cache: Path) -> base.Features:
        self.check(dataset)
        folder = resolved(self.path)
        hashes = [
            base.check_weights("dinov2", "path", folder / name, expected)
            for name, expected in zip(FILES, ("", self.sha256), strict=True)
        ]
        from transformers import AutoModel

        device = base.accelerator()
        network = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        network.eval().requires_grad_(False).to(device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))

        def features(x: Tensor) -> Tensor:
            pixels, size = (to_model(base.as_rgb(x).to(device)) + 1) / 2, (self.size, self.size)
            pixels = nnf.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
            return network((pixels - mean) / std).last_hidden_state[:, 0]

        return base.Features(
            "dinov2",
            hashlib.sha256("".join(hashes).encode()).hexdigest(),
            lambda x: base.in_batches(features, x, self.batch_size),
            resize=f"bicubic-antialias-{self.size}",
        )
