"""Data sets by name: ``DATA["digits"].load()``."""

from fewstep.experiments.data import digits, idx, toy
from fewstep.experiments.data.base import (
    DATA,
    Dataset,
    DataSource,
    Split,
    to_model,
    to_uint8,
)

__all__ = [
    "DATA",
    "DataSource",
    "Dataset",
    "Split",
    "digits",
    "idx",
    "to_model",
    "to_uint8",
    "toy",
]
