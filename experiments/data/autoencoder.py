"""Autoencoders of ``diffusers``: images to latents and back (optional: fewstep[latents])."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.data import to_model, to_uint8
from fewstep.files import resolved


class Autoencoder:
    """An ``AutoencoderKL``, in float32 and eval mode, given as a folder or a name on the hub.

    Its latents are scaled as its configuration says: (z - shift) * scale, with a standard deviation
    of about 1 (Rombach et al. 2022, appendix G; 0.18215 for Stable Diffusion's). A name is looked
    for in the local cache alone, unless ``download``; ``UserError`` where there is none.
    """

    def __init__(self, name: str, device: torch.device, download: bool = False) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise UserError(
                "an autoencoder needs the package diffusers: pip install 'fewstep[latents]'"
            ) from None
        local = resolved(name)
        try:
            network: Any = AutoencoderKL.from_pretrained(
                local if local.exists() else name,
                local_files_only=local.exists() or not download,
                use_safetensors=True,  # the other format is a pickle
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,  # would need accelerate, and warn each time it is missing
            )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            kept = local.exists() or download
            hint = "" if kept else "; download=true would fetch it from the hub"
            raise UserError(f"autoencoder {name!r} cannot be loaded ({reason}){hint}") from None
        self.name = str(local.resolve()) if local.exists() else name
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = device
        self.scale = float(network.config.scaling_factor)
        self.shift = float(network.config.shift_factor or 0.0)
        self.channels = int(network.config.in_channels)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)  # pixels a latent's side

    @property
    def sha256(self) -> str:
        """Hash of the weights by name; the settings show in their shapes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def shape_of(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latents of images (C, H, W); ``UserError`` for images it does not take."""
        C, H, W = image
        if self.channels != C and C != 1:
            raise UserError(f"autoencoder {self.name} takes {self.channels} channels, got {C}")
        if H % self.factor or W % self.factor:
            factor = f"{self.factor}, the autoencoder's factor (another data.size?)"
            raise UserError(f"images of {H}x{W} are not divisible by {factor}")
        return int(self.network.config.latent_channels), H // self.factor, W // self.factor

    def images_of(self, latents: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the images of latents (C, H, W); ``UserError`` for latents it does not take."""
        C, H, W = latents
        if (own := int(self.network.config.latent_channels)) != C:
            raise UserError(f"autoencoder {self.name} has latents of {own} channels, got {C}")
        return int(self.network.config.out_channels), H * self.factor, W * self.factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> mean and std of their scaled latents, on the CPU."""
        x = to_model(x.to(self.device)).expand(-1, self.channels, -1, -1)  # grey: three times
        posterior = self.network.encode(x).latent_dist
        mean, std = (posterior.mean - self.shift) * self.scale, posterior.std * abs(self.scale)
        return mean.float().cpu(), std.float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, H, W) -> uint8 images, on the CPU."""
        z = latents.to(self.device).float() / self.scale + self.shift
        return to_uint8(self.network.decode(z).sample.cpu())
