"""Autoencoders: the registry, what an entry has to offer, and one that is ready to use."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.data import to_model, to_uint8
from fewstep.registry import Registry, build_named


class AutoencoderNetwork(nn.Module):
    """A network between images in [-1, 1] and latents that are not scaled yet.

    Attributes:
        channels: of an image. latent_channels: of its latents. factor: pixels a latent's side.
        scale, shift: what is trained on is (z - shift) * scale, with a standard deviation of about
            1 (Rombach et al. 2022, appendix G).
        has_posterior: whether an image has many latents, with a mean and a standard deviation.
    """

    channels: int = 3
    latent_channels: int
    factor: int
    scale: float = 1.0
    shift: float = 0.0
    has_posterior: bool = False

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> mean and standard deviation of the posterior, each (B, c, h, w).

        The latter is None without ``has_posterior``.
        """
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> images (B, C, H, W)."""
        raise NotImplementedError

    def named_weights(self) -> Mapping[str, Tensor]:
        """What its hash is taken of."""
        return self.state_dict()


class AutoencoderEntry(Protocol):
    """A frozen dataclass of settings that loads a network."""

    def check(self) -> None:
        """Raise ``UserError`` where a package or a file is missing."""
        ...

    def load(self, download: bool = False) -> AutoencoderNetwork:
        """The network on the CPU in float32; ``UserError`` where it cannot be loaded.

        Nothing is fetched from elsewhere unless ``download``.
        """
        ...

    def files(self) -> Iterable[Path]:
        """The files it is made of: when they are replaced, what was computed of them is stale."""
        ...


AUTOENCODERS: Registry[AutoencoderEntry] = Registry(
    "autoencoder", "fewstep.autoencoders", methods=("check", "load", "files")
)


def entry_of(setting: str, value: Any) -> AutoencoderEntry:
    """The entry that ``value`` names: NAME, {name: NAME, setting: value}, or diffusers' FOLDER.

    ``setting``: what it is called in errors.
    """
    if isinstance(value, str) and value not in AUTOENCODERS:
        value = {"name": "diffusers", "path": value}
    entry: AutoencoderEntry = build_named(AUTOENCODERS, setting, value)
    return entry


class Autoencoder:
    """An autoencoder in eval mode on a device: uint8 images to scaled latents and back.

    ``name`` is how records call it.
    """

    def __init__(self, entry: AutoencoderEntry, device: torch.device, download: bool = False):
        entry.check()
        self.name = str(entry)
        self.network = entry.load(download).to(device).eval().requires_grad_(False)
        self.device = device
        self.scale, self.shift = self.network.scale, self.network.shift
        self.factor = self.network.factor
        self.has_posterior = self.network.has_posterior

    @property
    def sha256(self) -> str:
        """Hash of the weights by name; the settings show in their shapes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.named_weights().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def shape_of(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latents of images (C, H, W); ``UserError`` for images it does not take."""
        C, H, W = image
        if (own := self.network.channels) != C and C != 1:
            raise UserError(f"autoencoder {self.name} takes {own} channels, got {C}")
        if H % self.factor or W % self.factor:
            factor = f"{self.factor}, the autoencoder's factor (another data.size?)"
            raise UserError(f"images of {H}x{W} are not divisible by {factor}")
        return self.network.latent_channels, H // self.factor, W // self.factor

    def images_of(self, latents: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the images of latents (C, H, W); ``UserError`` for latents it does not take."""
        C, H, W = latents
        if (own := self.network.latent_channels) != C:
            raise UserError(f"autoencoder {self.name} has latents of {own} channels, got {C}")
        return self.network.channels, H * self.factor, W * self.factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images (B, C, H, W) -> mean and std of their scaled latents, on the CPU.

        The std is None without ``has_posterior``.
        """
        x = to_model(x.to(self.device)).expand(-1, self.network.channels, -1, -1)  # grey: thrice
        mean, std = self.network.encode(x)
        scaled = ((mean - self.shift) * self.scale).float().cpu()
        return scaled, None if std is None else (std * abs(self.scale)).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor, rounding: str = "nearest") -> Tensor:
        """Scaled latents (B, C, H, W) -> uint8 images, on the CPU; ``rounding``: of to_uint8."""
        z = latents.to(self.device).float() / self.scale + self.shift
        return to_uint8(self.network.decode(z).cpu(), rounding)
