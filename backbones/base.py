"""What a backbone is: settings that build a network F(x, t, d, y)."""

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Protocol

from torch import nn

from fewstep.deprecation import renamed
from fewstep.errors import UserError, check_choice, check_range
from fewstep.registry import Registry


class Backbone(Protocol):
    """A frozen dataclass of settings.

    It may have ``repeated``, the name of the setting that counts its blocks, where all are alike:
    then two of them tell whether a large network fits its objective (experiments/smoke.py).
    """

    def build(
        self, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int = 0
    ) -> nn.Module:
        """A network on data of ``shape`` (without the batch), its output shaped like its input.

        ``num_classes`` is 0 for data without labels; class ``num_classes`` stands for "no label".
        ``condition_dim`` is the k of condition vectors (B, k), 0 for none; a row of NaN stands for
        "no condition". ``jump`` says whether it is called with a jump length d.

        Raises ``UserError``: data of this shape does not fit.
        """
        ...


BACKBONES: Registry[Backbone] = Registry("backbone", "fewstep.backbones")


def build_backbone(
    backbone: Backbone, shape: tuple[int, ...], num_classes: int, jump: bool, condition_dim: int
) -> nn.Module:
    """``backbone.build``, also of one that knows no ``condition_dim``, as those of version 0.1.

    Raises ``UserError``: it knows none and the data has condition vectors, or the data does not
    fit.
    """
    if not condition_dim:
        return backbone.build(shape, num_classes, jump)
    if "condition_dim" not in signature(backbone.build).parameters:
        raise UserError(
            f"backbone {type(backbone).__name__} takes no condition vectors, the data has some of "
            f"{condition_dim} numbers: its build() needs an argument condition_dim"
        )
    return backbone.build(shape, num_classes, jump, condition_dim)


@dataclass(frozen=True, kw_only=True)
class ConditioningSettings:
    """How a network takes its condition, and dropout: the settings that all backbones have.

    Attributes:
        time_frequency: scale of the time embedding; 1 leaves time unscaled. The highest frequency
            if it is positional; the standard deviation of the frequencies, in periods, if fourier.
        time_embedding: positional (sinusoids of falling frequency) | fourier (random frequencies,
            Karras et al. 2024). The fourier one destabilises objectives that differentiate through
            t, sCM above all, unless time_frequency is small: at 1 the root mean square of its
            derivative is 2 pi, some 35 times that of the positional one.
        time_features: number of sinusoids, even.
        jump_embedding: log2 (of 1/d, 10 for d <= 2^-10, where the derivative with respect to d is
            therefore 0) | linear (d itself, embedded as t is: smooth, at d = 0 too, as objectives
            that differentiate through d need it).
        modulation: adaln (Peebles & Xie 2023) | double (adaptive double normalisation, Lu & Song
            2024); see ``Modulation``.
        dropout: share of the hidden features of each block that is zeroed in training.
    """

    time_frequency: float = 1.0
    time_embedding: str = "positional"
    time_features: int = 128
    jump_embedding: str = "log2"
    modulation: str = "adaln"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_range("backbone.time_frequency", self.time_frequency, 0, open_low=True)
        check_choice("backbone.time_embedding", self.time_embedding, ("positional", "fourier"))
        check_range("backbone.time_features", self.time_features, 2)
        if self.time_features % 2:
            raise UserError(f"backbone.time_features must be even, got {self.time_features}")
        check_choice("backbone.jump_embedding", self.jump_embedding, ("log2", "linear"))
        check_choice("backbone.modulation", self.modulation, ("adaln", "double"))
        check_range("backbone.dropout", self.dropout, 0, 0.99)


def parameters_by_part(network: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct child of ``network``, by name."""
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()
    }


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Conditioned": "ConditioningSettings"})
