"""Networks F(x, t, d, y) by name. Objectives never see which."""

from fewstep.backbones.attention import Attentive
from fewstep.backbones.base import BACKBONES, Backbone, Conditioned, parameters_by_part
from fewstep.backbones.dit import DiT
from fewstep.backbones.mlp import MLP
from fewstep.backbones.unet import UNet

__all__ = [
    "BACKBONES",
    "MLP",
    "Attentive",
    "Backbone",
    "Conditioned",
    "DiT",
    "UNet",
    "parameters_by_part",
]
