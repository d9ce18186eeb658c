"""A network trained for one objective, as the network of another, on another path.

What all objectives' networks are asked for is a velocity of their path in units of its noise:
v = s F(x_t / s, t), s = ``noise_std`` (1 on the linear path, sigma_d on TrigFlow). With it goes an
estimate of the data, E[x | x_t] of a flow or f(x_t, t) of a consistency function, and that is the
same on every path at the same signal-to-noise ratio. So the conversion is exact.
"""

from typing import Any

from torch import Tensor, nn

from fewstep.objectives.core.batch_math import full
from fewstep.objectives.core.paths import ProbabilityPath, convert_path


class ConvertedNetwork(nn.Module):
    """``network``, trained on the path ``source``, called as one on ``target`` is.

    Its estimate of the data is the network's own, to the last digits. ``d``: a jump length that the
    network takes and its caller does not give; None for what the caller gives.
    """

    def __init__(
        self,
        network: nn.Module,
        source: ProbabilityPath,
        target: ProbabilityPath,
        d: float | None = None,
    ) -> None:
        super().__init__()
        self.network, self.source, self.target, self.d = network, source, target, d

    def forward(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        d = full(self.d, x).to(t) if self.d is not None else d
        if self.source == self.target:
            return self.network(x, t, d, y)
        source, target = self.source, self.target
        x_s, s = convert_path(target.noise_std * x, t, target, source)
        v = source.noise_std * self.network(x_s / source.noise_std, s, d, y)
        data, noise = source.data_and_noise(x_s, v, s)
        return target.velocity(data, noise, t) / target.noise_std

    @property
    def checkpointing(self) -> bool:
        """Whether the network recomputes its activations in the backward pass."""
        network: Any = self.network
        return bool(network.checkpointing)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        network: Any = self.network
        network.checkpointing = value
