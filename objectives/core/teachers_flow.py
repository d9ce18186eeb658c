"""What distillations share that learn a teacher's flow: where its velocity comes from.

    v = v_w(x_t, t)                                     with classifier-free guidance w, or
    v = v_weak + a (v_teacher - v_weak)                 autoguidance by a weaker teacher, a > 1

Autoguidance is Karras et al. 2024's (arXiv:2406.02507), for distillation Sabour et al. 2025's
(arXiv:2506.14603, eq. 3): it takes away what both get wrong, and the weaker one more so.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.errors import UserError, check_range
from fewstep.objectives.core.base import Batch, Nets, Objective
from fewstep.objectives.core.guidance import guided
from fewstep.registry import added


@dataclass(frozen=True)
class TeachersFlow(Objective):
    """A mixin, before the objective that takes dx_t/dt from data."""

    teacher_guidance: float = 1.0
    autoguidance: float = added(1.0)

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        check_range("objective.teacher_guidance", self.teacher_guidance, 0)
        check_range("objective.autoguidance", self.autoguidance, 0)
        if self.autoguidance != 1 and self.teacher_guidance != 1:
            raise UserError(
                f"objective.autoguidance={self.autoguidance:g} and "
                f"objective.teacher_guidance={self.teacher_guidance:g} cannot be used together: "
                f"leave one of them at 1"
            )

    @property
    def needs_weak_teacher(self) -> bool:
        return self.autoguidance != 1

    def drift(self, nets: Nets, batch: Batch, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt of the teacher's flow, (B, ...)."""
        return self.teachers_velocity(nets, x_t, t, batch.y)

    @torch.no_grad()
    def teachers_velocity(self, nets: Nets, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        v = guided(nets.teacher_on(self.path), self.teacher_guidance, y)(x_t, t, y=y)
        if not self.needs_weak_teacher:
            return v
        weak = nets.teacher_on(self.path, "weak_teacher")(x_t, t, y=y)
        return weak + self.autoguidance * (v - weak)

    def step_cost(self) -> float:
        own = super().step_cost()
        assert own is not None
        calls = 1 if self.teacher_guidance == 1 and not self.needs_weak_teacher else 2
        return own + calls / 3
