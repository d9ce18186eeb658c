"""Data sets by name: ``DATA["digits"].load()``."""

from fewstep.experiments.data import cifar, digits, folder, hub, idx, latents, toy
from fewstep.experiments.data.base import (
    DATA,
    Dataset,
    DataSource,
    Rows,
    Split,
    take,
    to_model,
    to_uint8,
)

__all__ = [
    "DATA",
    "DataSource",
    "Dataset",
    "Rows",
    "Split",
    "cifar",
    "digits",
    "folder",
    "hub",
    "idx",
    "latents",
    "take",
    "to_model",
    "to_uint8",
    "toy",
]
