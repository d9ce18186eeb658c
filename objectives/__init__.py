"""What to regress on, and how to sample what was learned: one file per method."""

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
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.guidance import Guided
from fewstep.objectives.paths import Linear, Path, Trig
from fewstep.objectives.scm import SCM
from fewstep.objectives.shortcut import Shortcut

__all__ = [
    "OBJECTIVES",
    "SCM",
    "Batch",
    "Consistency",
    "FlowMatching",
    "Guided",
    "Linear",
    "Loss",
    "Net",
    "Nets",
    "Objective",
    "Path",
    "Progress",
    "Shortcut",
    "Trig",
    "sampling_fields",
]
