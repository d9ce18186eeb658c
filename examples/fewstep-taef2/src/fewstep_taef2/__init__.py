"""TAEF2 (Ollin Boer Bohan, github.com/madebyollin/taesd): an autoencoder for FLUX.2's latents."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.autoencoders import AutoencoderNetwork

FILES = ("taef2_encoder.safetensors", "taef2_decoder.safetensors")
CHANNELS, LATENT_CHANNELS, WIDTH = 3, 32, 64


@dataclass(frozen=True)
class TAEF2:
    """TAEF2: images to latents of 32 channels, 8 pixels a side, and back.

    Attributes:
        path: folder with taef2_encoder.safetensors and taef2_decoder.safetensors.
    """

    path: str = ""

    def __str__(self) -> str:
        return f"taef2 in {Path(self.path).expanduser().resolve()}"

    def files(self) -> Iterable[Path]:
        return [Path(self.path).expanduser() / name for name in FILES] if self.path else []

    def check(self) -> None:
        if not self.path:
            raise UserError('autoencoder taef2 needs its weights: "{name: taef2, path: FOLDER}"')
        for file in self.files():
            if not file.is_file():
                raise UserError(f"autoencoder taef2: no file {file}; nothing is downloaded")

    def load(self, download: bool = False) -> AutoencoderNetwork:
        network = Network()
        for part, file in zip((network.encoder, network.decoder), self.files(), strict=True):
            part.load_state_dict({name: w.float() for name, w in load_file(file).items()})
        return network


class Network(AutoencoderNetwork):
    """Its own range of pixels is 0 to 1; an image has one latent, of standard deviation about 1."""

    channels, latent_channels, factor = CHANNELS, LATENT_CHANNELS, 8

    def __init__(self) -> None:
        super().__init__()
        blocks = [[Block() for _ in range(3)] for _ in range(4)]
        pooled = [[Block(pooled=True) for _ in range(3)] for _ in range(2)]
        self.encoder = nn.Sequential(
            nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), Block(),
            halved(), *blocks[0], halved(), *blocks[1], halved(), *pooled[0],
            nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            Clamp(), nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1), nn.ReLU(),
            *pooled[1], *doubled(), *blocks[2], *doubled(), *blocks[3], *doubled(), Block(),
            nn.Conv2d(WIDTH, CHANNELS, 3, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        return self.encoder((x + 1) / 2), None

    def decode(self, z: Tensor) -> Tensor:
        return 2 * self.decoder(z) - 1


class Block(nn.Module):
    """Three convolutions beside the identity; ``pooled`` puts a branch of 1x1 ones before."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (plain(), nn.ReLU())]
        self.conv = nn.Sequential(*layers[:-1])
        wide = 4 * WIDTH
        self.pool = nn.Sequential(
            nn.Conv2d(WIDTH, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(),
            nn.Conv2d(wide, WIDTH, 1, bias=False),
        ) if pooled else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Latents are kept within -3 and 3, smoothly."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


def plain() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


def halved() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)


def doubled() -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
