"""Your own network and data with condition vectors, trained and evaluated by fewstep.

Registered names are options like any other: they have settings, and part of a run's key.

python examples/own_network.py [--runs runs] [objective=shortcut training.steps=500 ...]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep import BACKBONES, DATA, Dataset, Split, compose, prepare, run


class MyNetwork(nn.Module):
    """F(x, t, d, y) on vectors; a row of NaN in y, or y=None, says "no condition"."""

    def __init__(self, features: int, condition_dim: int, width: int) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(condition_dim))
        self.layers = nn.Sequential(
            nn.Linear(features + 2 + condition_dim, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, features),
        )  # fmt: skip

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        d = torch.zeros_like(t) if d is None else d
        y = self.none.expand(len(x), -1) if y is None else torch.where(y.isnan(), self.none, y)
        return self.layers(torch.cat([x, t[:, None], d[:, None], y], dim=1))


@BACKBONES.register("my_network")
@dataclass(frozen=True)
class MyBackbone:
    """Its settings, and how it is built for data of a ``shape``."""

    width: int = 128

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        """The network; this one takes condition vectors and no classes."""
        return MyNetwork(shape[0], condition_dim, self.width)


@DATA.register("spiral")
@dataclass(frozen=True)
class Spiral:
    """Points x on a spiral; the condition y (N, 1) is how far along they are, from 0 to 1."""

    suggested_backbone: ClassVar[str] = "my_network"

    samples: int = 4096
    noise: float = 0.03

    def load(self) -> Dataset:
        """The training and the test split: float32 vectors and float32 conditions."""

        def draw(n: int, seed: int) -> Split:
            g = torch.Generator().manual_seed(seed)
            y = torch.rand(n, 1, generator=g)
            spiral = (0.2 + y) * torch.cat([(9 * y).cos(), (9 * y).sin()], dim=1)
            return Split(spiral + self.noise * torch.randn(n, 2, generator=g), y)

        return Dataset("spiral", draw(self.samples, 0), draw(1024, 1), 0)


def main(runs: str, overrides: list[str]) -> None:
    """Train one run and print its distances to the data by number of steps."""
    config = compose([
        "data=spiral", "objective=shortcut", "training.steps=1500", "training.lr=0.002",
        "training.label_dropout=0.1", "evaluation.steps=[1,2,4]", f"runs={runs}", *overrides,
    ])  # fmt: skip
    directory = prepare(config)
    result = run(directory)  # a run that is done already is only read
    print(f"{directory.path}: {result['parameters']} parameters, loss {result['loss']:.3f}")
    for record in directory.cells().values():
        steps, label = record["cell"]["steps"], record["metric"]["label"]
        print(f"steps={steps}: {label} = {record['value']:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*")
    main(**vars(parser.parse_args()))
