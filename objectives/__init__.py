"""What to regress on, and how to sample what was learned: one file per method."""

from typing import TYPE_CHECKING

from fewstep.deprecation import renamed
from fewstep.objectives.alpha_flow import AlphaFlow
from fewstep.objectives.ayf import AYFEMD, AYFLMD
from fewstep.objectives.consistency import Consistency
from fewstep.objectives.consistency_distillation import ConsistencyDistillation
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, rand, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import Guided
from fewstep.objectives.core.label_dropout import drop_conditions
from fewstep.objectives.core.paths import LinearPath, ProbabilityPath, TrigPath
from fewstep.objectives.core.samplers import sampling_fields
from fewstep.objectives.core.teacher import Teacher
from fewstep.objectives.ctm import CTM
from fewstep.objectives.decoupled_mean_flow import DecoupledMeanFlow
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.ect import ECT
from fewstep.objectives.esd import ESD
from fewstep.objectives.facm import FACM, FACMDistillation
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.ict import ICT
from fewstep.objectives.imm import IMM
from fewstep.objectives.improved_mean_flow import ImprovedMeanFlow
from fewstep.objectives.live_reflow import LiveReflow
from fewstep.objectives.lsd import LSD
from fewstep.objectives.mean_flow import MeanFlow
from fewstep.objectives.progressive_distillation import ProgressiveDistillation
from fewstep.objectives.psd import PSD
from fewstep.objectives.reflow import Reflow
from fewstep.objectives.scm import SCD, SCM
from fewstep.objectives.shortcut import Shortcut
from fewstep.objectives.shortcut_continuous import ShortcutContinuous
from fewstep.objectives.sid import SiD
from fewstep.objectives.soflow import SoFlow
from fewstep.objectives.tcm import TCM
from fewstep.objectives.tim import TiM
from fewstep.objectives.tvm import TVM

__all__ = [
    "AYFEMD", "AYFLMD", "CTM", "DMD2", "ECT", "ESD", "FACM", "ICT", "IMM", "LSD", "OBJECTIVES",
    "PSD", "SCD", "SCM", "TCM", "TVM", "AlphaFlow", "Batch", "Consistency",
    "ConsistencyDistillation", "DecoupledMeanFlow", "FACMDistillation", "FlowMatching",
    "GaussianFlow", "Guided", "ImprovedMeanFlow", "LinearPath", "LiveReflow", "Loss", "MeanFlow",
    "Net", "Nets", "Objective", "ProbabilityPath", "Progress", "ProgressiveDistillation",
    "Reflow", "Shortcut", "ShortcutContinuous", "SiD", "SoFlow", "Teacher", "TiM", "TrigPath",
    "drop_conditions", "expand", "mean_square", "rand", "randn", "sampling_fields",
]  # fmt: skip

if not TYPE_CHECKING:
    _OLD = {"Path": "ProbabilityPath", "Linear": "LinearPath", "Trig": "TrigPath"}
    __getattr__ = renamed(__name__, _OLD)
