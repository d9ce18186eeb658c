"""An objective of fewstep in your own training loop: one-step samples of handwritten digits.

python examples/own_loop.py [--steps 1000] [--picture digits.png]
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fewstep import Batch, MeanFlow, Nets, Progress


class MyNet(nn.Module):
    """Any module with this signature: x (B, 64), t and d (B,), y a condition or None."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 2, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 64),
        )  # fmt: skip

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        d = torch.zeros_like(t) if d is None else d
        return self.layers(torch.cat([x, t[:, None], d[:, None]], dim=1))


def main(steps: int, picture: str) -> None:
    """Train, sample in one step and in four, and draw both beside the data."""
    torch.manual_seed(0)
    data = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)  # in [-1, 1]
    net, objective, g = MyNet(), MeanFlow(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    for step in range(steps):
        x = data[torch.randint(len(data), (128,), generator=g)]
        loss = objective.loss(Nets(net), Batch(x), Progress(step, steps), g)
        optimiser.zero_grad()
        loss.per_sample.mean().backward()
        optimiser.step()

    noise = torch.randn(1000, 64, generator=g)
    rows = {"data": data, **{f"steps={n}": objective.sample(net, noise, times=n) for n in (1, 4)}}
    _, axes = plt.subplots(len(rows), 10, figsize=(10, 3.3))
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        print(f"{name}: mean {images.mean():.2f}, std {images.std():.2f}")
        line[0].set_title(name, loc="left", fontsize=9)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.view(8, 8), cmap="gray_r", vmin=-1, vmax=1)
            axis.set_axis_off()
    plt.savefig(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--picture", default="digits.png")
    main(**vars(parser.parse_args()))
