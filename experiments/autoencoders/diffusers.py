"""Autoencoders of ``diffusers`` (optional: fewstep[latents])."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.autoencoders.base import AUTOENCODERS, AutoencoderNetwork
from fewstep.experiments.store.json_files import CorruptFile, read_json
from fewstep.files import resolved

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")


@AUTOENCODERS.register("diffusers")
@dataclass(frozen=True)
class Diffusers:
    """An AutoencoderKL, AutoencoderTiny or AutoencoderDC (DC-AE) in a folder, as its config says.

    Attributes:
        path: the folder (``save_pretrained``), or a name of the hub that is in the local cache.
    """

    path: str = ""

    def __str__(self) -> str:
        local = resolved(self.path)
        return str(local.resolve()) if local.exists() else self.path

    def check(self) -> None:
        if not self.path:
            raise UserError("autoencoder diffusers needs its weights: autoencoder=FOLDER")
        if importlib.util.find_spec("diffusers") is None:
            raise UserError(
                "an autoencoder of diffusers needs the package: pip install 'fewstep[latents]'"
            )

    def files(self) -> Iterable[Path]:
        return filter(Path.is_file, resolved(self.path).glob("*")) if self.path else ()

    def load(self, download: bool = False) -> AutoencoderNetwork:
        import diffusers

        local = resolved(self.path)
        try:
            config = read_json(local / "config.json") if local.exists() else None
            name = str((config or {}).get("_class_name", CLASSES[0]))
            if name not in CLASSES:
                raise ValueError(f"its class is {name} (choices: {', '.join(CLASSES)})")
            network: Any = getattr(diffusers, name).from_pretrained(
                local if local.exists() else self.path,
                local_files_only=local.exists() or not download,
                use_safetensors=True,  # the other format is a pickle
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,  # would need accelerate, and warn each time it is missing
            )
        except (OSError, ValueError, KeyError, CorruptFile) as error:
            reason = " ".join(str(error).split())[:200]
            kept = local.exists() or download
            hint = "" if kept else "; download=true would fetch it from the hub"
            raise UserError(
                f"autoencoder {self.path!r} cannot be loaded ({reason}){hint}"
            ) from None
        return DiffusersNetwork(network)


class DiffusersNetwork(AutoencoderNetwork):
    """Any of the three. A Gaussian posterior is the first's; the others give one latent."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, config = network, network.config
        self.has_posterior = type(network).__name__ == CLASSES[0]
        levels = config.get("encoder_block_out_channels") or config["block_out_channels"]
        self.channels = int(config["in_channels"])
        self.latent_channels = int(config["latent_channels"])
        self.factor = 2 ** (len(levels) - 1)
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        (found,) = self.network.encode(x, return_dict=False)
        return (found, None) if isinstance(found, Tensor) else (found.mean, found.std)

    def decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.network.decode(z, return_dict=False)[0]
        return images

    def named_weights(self) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = self.network.state_dict()
        return weights
