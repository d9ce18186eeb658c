"""Networks F(x, t, d, y) by name. Objectives never see which."""

from fewstep.backbones.attention import AttentionSettings as AttentionSettings
from fewstep.backbones.base import BACKBONES as BACKBONES
from fewstep.backbones.base import Backbone as Backbone
from fewstep.backbones.base import ConditioningSettings as ConditioningSettings
from fewstep.backbones.base import build_backbone as build_backbone
from fewstep.backbones.base import parameters_by_part as parameters_by_part
from fewstep.backbones.dit import DiT as DiT
from fewstep.backbones.mlp import MLP as MLP
from fewstep.backbones.unet import UNet as UNet
