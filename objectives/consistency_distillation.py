"""Consistency distillation (Song et al. 2023, algorithm 2), on the linear path.

    f(x_t, t) = x_t - t F(x_t, t)                 the jump to data; f(x, 0) = x by construction
    x_s = one step of the teacher's flow from x_t, from t to s = t - 1/n
    L = E |F(x_t, t) - (x_t - f^-(x_s, s)) / t|^2,    f^- by the EMA network

t is uniform on the grid {1/n, 2/n, ..., 1}. The paper takes Heun steps on a grid of 18 or 40 noise
levels and LPIPS; the shortcut paper's baseline (``solver=euler``, n = 128, ``clip=4`` of x_s, no
guidance) takes the squared error, as here. Their t is our 1 - t.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice, check_fields, check_range
from fewstep.objectives.consistency import ConsistencyFunction
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress, check_target
from fewstep.objectives.core.batch_math import expand, randn
from fewstep.objectives.core.guidance import guided
from fewstep.registry import added


@dataclass(frozen=True)
class ConsistencyDistillation(ConsistencyFunction):
    """A consistency function along a teacher's flow.

    Attributes:
        intervals: n, the number of intervals of the grid.
        solver: euler | heun, the teacher's step.
        target: ema | online, the network behind f^-. target_decay: of that average, 0.95 in new
            runs (Song et al. 2023, table 3, ImageNet-64); None for the one that is evaluated.
        clip: bound on |x_s|, or None.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    intervals: int = 128
    solver: str = "heun"
    target: str = "ema"
    clip: float | None = None
    teacher_guidance: float = 1.0
    target_decay: float | None = added(None)

    title: ClassVar[str] = "Consistency distillation"
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("objective.intervals", self.intervals, 1)
        check_choice("objective.solver", self.solver, ("euler", "heun"))
        check_target(self)
        check_range("objective.teacher_guidance", self.teacher_guidance, 0)
        check_fields("objective", self, "clip", 0, open_low=True)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, s = self.grid_times(x, self.intervals, g)
        x_t = self.path.mix(x, randn(x, g), t)
        teacher = guided(nets.teacher_on(self.path), self.teacher_guidance, y)
        with torch.no_grad():
            x_s = self.step(teacher, x_t, t, s, y)
        return self.regress(nets, x_t, t, x_s, s, y)

    def step(self, teacher: Net, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """One step of dx/dt = teacher(x, t) from t to s."""
        h = expand(s - t, x_t)  # negative: toward data
        v = teacher(x_t, t, y=y)
        if self.solver == "heun":
            v = (v + teacher(x_t + h * v, s, y=y)) / 2
        x_s = x_t + h * v
        return x_s if self.clip is None else x_s.clamp(-self.clip, self.clip)

    def step_cost(self) -> float:
        teacher = (1 if self.solver == "euler" else 2) * (1 if self.teacher_guidance == 1 else 2)
        return (4 + teacher) / 3


OBJECTIVES.add("consistency_distillation", ConsistencyDistillation(target_decay=0.95))
