"""How a network is trained by several processes: copied to all (ddp) or split among them (fsdp).

torch's DistributedDataParallel is not used: a tangent cannot be taken through its wrapper, and
calling the module inside it lets the copies drift apart in silence. What it does, summing gradients
while the backward pass goes on, is a hook on each parameter. FSDP2 (``fully_shard``) keeps the
parameters, gradients, averages and moments of AdamW in W parts, and fetches a block's whole
parameters for the time it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from fewstep.errors import UserError
from fewstep.experiments.distributed import Ranks
from fewstep.experiments.settings import Training
from fewstep.experiments.sharded import Sharded
from fewstep.objectives import Net


class Disagreement(RuntimeError):
    """The processes, each of which takes the loss of the whole batch, take different ones."""


class Alone:
    """One process: nothing is shared."""

    whole_here: ClassVar[bool] = True  # whether each process has all of the network

    def spread(self, network: nn.Module) -> nn.Module:
        """``network`` as it is kept here, changed in place."""
        return network

    def share(self, net: Net) -> Net:
        """``net`` as a loss may ask it."""
        return net

    def watch(self, network: nn.Module, learned: nn.Module | None) -> None:
        """From now on, backward passes leave the gradients of the whole batch, once summed."""

    def sum_gradients(self) -> None:
        """Return once the gradients of the last backward pass are those of the whole batch."""

    def groups(self, network: nn.Module, learned: nn.Module | None) -> list[list[nn.Parameter]]:
        """The parameters, in groups that one kernel can update."""
        parts = [network] if learned is None else [network, learned]
        return [[p for part in parts for p in part.parameters()]]

    def clip(self, parameters: Iterable[nn.Parameter], bound: float) -> Tensor:
        """Bound the norm of all gradients together, and return it."""
        return nn.utils.clip_grad_norm_(parameters, bound)

    def check(self, loss: float) -> None:
        """Hold the loss that was taken here against the other processes'."""

    def here(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The parts of parameters that are kept here; changing them changes the parameters."""
        return list(tensors)

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor as a checkpoint has it; what the first process has counts."""
        return tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """``whole``, kept as ``like`` is."""
        return whole


class Copied(Alone):
    """Data parallel: every process has the whole network, and sums gradients with the others."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sums: list[tuple[Any, Tensor, int]] = []

    def share(self, net: Net) -> Net:
        return Sharded(net, self.ranks)

    def watch(self, network: nn.Module, learned: nn.Module | None) -> None:
        self._sum(network, 1)
        if learned is not None:  # asked with all rows by all, who agree but for stray roundings
            self._sum(learned, self.ranks.size)

    def _sum(self, module: nn.Module, copies: int) -> None:
        def begin(parameter: Tensor) -> None:
            assert parameter.grad is not None
            work = dist.all_reduce(parameter.grad, async_op=True)
            self.sums.append((work, parameter.grad, copies))

        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(begin)

    def sum_gradients(self) -> None:
        for work, gradient, copies in self.sums:
            work.wait()
            if copies > 1:
                gradient /= copies
        self.sums.clear()

    def check(self, loss: float) -> None:
        losses = self.ranks.each(loss)
        if any(not math.isclose(loss, other, rel_tol=1e-5) for other in losses):
            raise Disagreement(
                f"the processes of this run disagree about its loss ({losses}): the objective "
                f"draws random numbers that do not come from its generator"
            )


class Split(Copied):
    """FSDP2: every process keeps a part of each parameter."""

    whole_here: ClassVar[bool] = False

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        super().__init__(ranks)
        self.mesh = init_device_mesh(device.type, (ranks.size,))

    def spread(self, network: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
        blocks = [block for blocks in reversed(lists) for block in blocks]  # from the inside out
        for module in [*blocks, network]:
            # resharded even at the root: an average is never back-propagated, which would do it
            shard: Any = fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
            shard.set_gradient_divide_factor(1.0)  # the sum: see ``Gather``
            shard.set_force_sum_reduction_for_comms(True)
        return network

    def watch(self, network: nn.Module, learned: nn.Module | None) -> None:
        if learned is not None:
            self._sum(learned, self.ranks.size)

    def groups(self, network: nn.Module, learned: nn.Module | None) -> list[list[nn.Parameter]]:
        parts = [network] if learned is None else [network, learned]
        return [list(part.parameters()) for part in parts]

    def clip(self, parameters: Iterable[nn.Parameter], bound: float) -> Tensor:
        gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
        split = [g.to_local() for g in gradients if is_split(g)]
        whole = [g for g in gradients if not is_split(g)]
        squared = sum_of_squares(split)
        dist.all_reduce(squared)
        norm = (squared + sum_of_squares(whole).to(squared)).sqrt()
        if bound < math.inf:
            factor = (bound / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
            torch._foreach_mul_([*split, *whole], factor)
        return norm

    def here(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        kept: list[Any] = list(tensors)
        return [t.to_local() if is_split(t) else t for t in kept]

    def whole(self, tensor: Any) -> Tensor:
        if not is_split(tensor):
            return tensor
        full = tensor.full_tensor()  # a collective: all take part, one keeps it
        return full.cpu() if self.ranks.first else full.new_empty(0)

    def placed(self, whole: Tensor, like: Any) -> Tensor:
        if not is_split(like):
            return whole
        from torch.distributed.tensor import distribute_tensor

        mesh, places = like.device_mesh, like.placements
        return distribute_tensor(whole.to(like.device), mesh, places, src_data_rank=None)


def is_split(tensor: Any) -> bool:
    """Whether it is a DTensor, kept in parts."""
    return hasattr(tensor, "full_tensor")


def sum_of_squares(tensors: list[Any]) -> Tensor:
    """Of all their numbers, in one."""
    if not tensors:
        return torch.zeros(())
    return torch.stack([norm.square() for norm in torch._foreach_norm(tensors)]).sum()


def choose(training: Training, ranks: Ranks, device: torch.device) -> Alone:
    """The way that ``training.parallel`` asks for; nothing to do for one process.

    Raises:
        UserError: devices that cannot work together.
    """
    if ranks.alone:
        return Alone()
    check_devices(ranks, device)
    return Split(ranks, device) if training.parallel == "fsdp" else Copied(ranks)


def check_devices(ranks: Ranks, device: torch.device) -> None:
    """Refuse devices of several kinds, which draw different random numbers, and shared GPUs."""
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"training.device {device} cannot be shared among {ranks.size} processes")
    kind, gpu = device.type, ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind, gpu = properties.name, str(getattr(properties, "uuid", ""))
    found = ranks.each((kind, gpu))
    if len({kind for kind, _ in found}) > 1:
        told = ", ".join(f"{i}: {kind}" for i, (kind, _) in enumerate(found))
        raise UserError(f"the processes of a run need devices of one kind, got {told}")
    if gpu and len({gpu for _, gpu in found}) < len(found):
        raise UserError(
            f"{ranks.size} processes share {len({gpu for _, gpu in found})} GPUs: start as many "
            f"on a node as it has GPUs, with training.device=auto"
        )
