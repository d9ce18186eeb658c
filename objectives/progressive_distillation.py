"""Progressive distillation (Salimans & Ho 2022), as the shortcut paper's baseline writes it.

    stage k = 0, ..., K - 1:  one step of length d = 2^(k + 1) / M replaces two of the teacher's
    v1 = T(x_t, t),  x' = x_t - d/2 v1,  v2 = T(x', t - d/2)
    L = E |F(x_t, t) - (v1 + v2) / 2|^2,   t uniform on {d, 2d, ..., 1}
    T is the teacher's flow in stage 0, and afterwards the student of the stage before

M = ``finest`` = 2^K. The stages have equal shares of the training; the last one leaves a network
that goes from t = 1 to the data at once. The network is not given d. Guidance acts on the teacher,
so in stage 0 only. Salimans & Ho predict x and halve the steps of a cosine schedule; Frans et al.
2024 (appendix, and their code: ``clip=4`` of x', the student's EMA as the next teacher) regress
velocities on the linear path, as here, where the student itself is the next teacher.
Their t is our 1 - t.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, randint, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.guidance import guided
from fewstep.objectives.core.paths import LinearPath


@OBJECTIVES.register("progressive_distillation")
@dataclass(frozen=True)
class ProgressiveDistillation(Objective):
    """Halve the number of steps again and again.

    Attributes:
        finest: M, a power of two, the number of steps the teacher is distilled from.
        clip: bound on |x'|, or None.
        teacher_guidance: guidance scale of the teacher; 1 for none.
    """

    finest: int = 128
    clip: float | None = None
    teacher_guidance: float = 1.0

    title: ClassVar[str] = "Progressive distillation"
    needs_teacher: ClassVar[bool] = True
    jump_range: ClassVar = "one_step"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise UserError(f"objective.finest must be a power of two >= 2, got {self.finest}")
        check_fields("objective", self, "clip", 0, open_low=True)
        check_range("objective.teacher_guidance", self.teacher_guidance, 0)

    @property
    def stages(self) -> int:
        """K = log2(M)."""
        return self.finest.bit_length() - 1

    def stage(self, progress: Progress) -> int:
        """k at this point of the training."""
        return min(self.stages * progress.step // max(1, progress.total), self.stages - 1)

    def takes_snapshot(self, progress: Progress) -> bool:
        before = Progress(max(0, progress.step - 1), progress.total)
        return self.stage(progress) > self.stage(before)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, k = batch.x, batch.y, self.stage(progress)
        steps = self.finest >> (k + 1)
        i = randint(1, torch.full((len(x),), steps + 1, device=x.device), g)
        t = (i / steps).to(x.dtype)
        x_t = self.path.mix(x, randn(x, g), t)
        scale = self.teacher_guidance
        teacher = nets.snapshot if k else guided(nets.teacher_on(self.path), scale, y)
        target = self.two_steps(teacher, x_t, t, 1 / steps, y)
        logs = {"stage": torch.tensor(float(k))}
        return Loss(mean_square(nets.online(x_t, t, y=y) - target), t, logs)

    @torch.no_grad()
    def two_steps(self, teacher: Net, x_t: Tensor, t: Tensor, d: float, y: Tensor | None) -> Tensor:
        """The average velocity of two of the teacher's steps of length d/2."""
        v1 = teacher(x_t, t, y=y)
        between = x_t - d / 2 * v1
        if self.clip is not None:
            between = between.clamp(-self.clip, self.clip)
        v2 = teacher(between, t - d / 2, y=y)
        return (v1 + v2) / 2

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return x_t - expand(t - u, x_t) * net(x_t, t, y=y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        d = 2 ** (self.stage(progress) + 1) / self.finest
        return lambda x, t, d_=None, y=None: flow.average_velocity(x, t, torch.full_like(t, d))

    def step_cost(self) -> float:
        return 5 / 3
