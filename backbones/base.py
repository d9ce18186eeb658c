"""What a backbone is: settings that build a network F(x, t, d, y)."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from fewstep.registry import Registry


class Backbone(Protocol):
    """A frozen dataclass of settings."""

    def build(self, shape: tuple[int, ...], num_classes: int, jump: bool) -> nn.Module:
        """A network on data of ``shape`` (without the batch), its output shaped like its input.

        ``num_classes`` is 0 for data without labels; class ``num_classes`` stands for "no label".
        ``jump`` says whether it is asked with a jump length d.

        Raises:
            UserError: data of this shape does not fit.
        """
        ...


BACKBONES: Registry[Backbone] = Registry("backbone", "fewstep.backbones")
