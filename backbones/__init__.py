"""Networks F(x, t, d, y) by name. Objectives never see which."""

from fewstep.backbones.base import BACKBONES, Backbone
from fewstep.backbones.dit import DiT
from fewstep.backbones.mlp import MLP

__all__ = ["BACKBONES", "MLP", "Backbone", "DiT"]
