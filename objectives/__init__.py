"""What to regress on, and how to sample what was learned: one file per method."""

from fewstep.objectives.alpha_flow import AlphaFlow
from fewstep.objectives.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Objective,
    Progress,
    sampling_fields,
)
from fewstep.objectives.consistency import Consistency
from fewstep.objectives.consistency_distillation import ConsistencyDistillation
from fewstep.objectives.ect import ECT
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.gaussian import GaussianFlow
from fewstep.objectives.guidance import Guided
from fewstep.objectives.ict import ICT
from fewstep.objectives.improved_mean_flow import ImprovedMeanFlow
from fewstep.objectives.live_reflow import LiveReflow
from fewstep.objectives.mean_flow import MeanFlow
from fewstep.objectives.paths import Linear, Path, Trig
from fewstep.objectives.progressive_distillation import ProgressiveDistillation
from fewstep.objectives.reflow import Reflow
from fewstep.objectives.scm import SCD, SCM
from fewstep.objectives.shortcut import Shortcut
from fewstep.objectives.shortcut_continuous import ShortcutContinuous
from fewstep.objectives.teacher import Teacher

__all__ = [
    "ECT",
    "ICT",
    "OBJECTIVES",
    "SCD",
    "SCM",
    "AlphaFlow",
    "Batch",
    "Consistency",
    "ConsistencyDistillation",
    "FlowMatching",
    "GaussianFlow",
    "Guided",
    "ImprovedMeanFlow",
    "Linear",
    "LiveReflow",
    "Loss",
    "MeanFlow",
    "Net",
    "Nets",
    "Objective",
    "Path",
    "Progress",
    "ProgressiveDistillation",
    "Reflow",
    "Shortcut",
    "ShortcutContinuous",
    "Teacher",
    "Trig",
    "sampling_fields",
]
