"""How a network is trained by several processes: copied to all (ddp) or split among them (fsdp).

torch's DistributedDataParallel is not used: no tangent can be taken through its wrapper. What it
does, summing gradients during the backward pass, is a hook on each parameter here. FSDP2
(``fully_shard``) keeps parameters, gradients, averages and the optimiser's moments in W parts, and
fetches a block's whole parameters for the time it is computed.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from fewstep.errors import UserError
from fewstep.experiments.distributed.batch_sharding import ShardedBatchNet
from fewstep.experiments.distributed.process_group import Ranks
from fewstep.experiments.distributed.sharded_tensors import is_sharded, sharded_like
from fewstep.objectives import Net


class Disagreement(RuntimeError):
    """The processes, each of which takes the loss of the whole batch, take different ones."""


class SingleProcess:
    """One process: nothing is shared."""

    replicated: ClassVar[bool] = True  # whether each process has all of the network

    def wrap(self, network: nn.Module) -> nn.Module:
        """``network`` as it is kept here, changed in place."""
        return network

    def shard_batch(self, net: Net) -> Net:
        """``net`` as a loss may ask it."""
        return net

    def watch(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        """From now on, backward passes leave the gradients of the whole batch, once summed."""

    def sum_gradients(self) -> None:
        """Return once the gradients of the last backward pass are those of the whole batch."""

    def groups(self, network: nn.Module, auxiliary: nn.Module | None) -> list[list[nn.Parameter]]:
        """The parameters, in groups that one kernel can update."""
        parts = [list(part.parameters()) for part in (network, auxiliary) if part is not None]
        return [[p for part in parts for p in part]] if self.replicated else parts

    def clip(self, parameters: Iterable[nn.Parameter], bound: float) -> Tensor:
        """Bound the norm of all gradients together, and return what it was before."""
        if bound == math.inf:  # a factor of inf / norm is NaN where the norm is not finite
            return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return nn.utils.clip_grad_norm_(parameters, bound)

    def check(self, loss: float) -> None:
        """Hold the loss that was taken here against the other processes'."""

    def local_shards(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The parts of parameters that are kept here; changing them changes the parameters."""
        return list(tensors)

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor as a checkpoint has it; what the first process has counts."""
        return tensor

    def distribute(self, whole: Tensor, like: Tensor) -> Tensor:
        """``full_tensor``, kept as ``like`` is."""
        return whole


class DataParallel(SingleProcess):
    """Data parallel: every process has the whole network, and sums gradients with the others."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sums: list[tuple[Any, Tensor, int]] = []

    def shard_batch(self, net: Net) -> Net:
        return ShardedBatchNet(net, self.ranks)

    def watch(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        if self.replicated:  # FSDP sums by itself
            self._sum(network, 1)
        if auxiliary is not None:  # asked with all rows by all, who agree but for stray roundings
            self._sum(auxiliary, self.ranks.size)

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
        losses = self.ranks.all_gather(loss)
        if any(not math.isclose(loss, other, rel_tol=1e-5) for other in losses):
            raise Disagreement(
                f"the processes of this run disagree about its loss ({losses}): the objective "
                f"draws random numbers that do not come from its generator"
            )


class FullyShard(DataParallel):
    """FSDP2: every process keeps a part of each parameter."""

    replicated: ClassVar[bool] = False

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        super().__init__(ranks)
        self.mesh = init_device_mesh(device.type, (ranks.size,))

    def wrap(self, network: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
        blocks = [block for blocks in reversed(lists) for block in blocks]  # from the inside out
        for module in [*blocks, network]:
            # resharded even at the root: an average is never back-propagated, which would do it
            shard: Any = fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
            shard.set_gradient_divide_factor(1.0)  # the sum: see ``Gather``
            shard.set_force_sum_reduction_for_comms(True)
        return network

    def clip(self, parameters: Iterable[nn.Parameter], bound: float) -> Tensor:
        gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
        split = [g.to_local() for g in gradients if is_sharded(g)]
        whole = [g for g in gradients if not is_sharded(g)]
        squared = sum_of_squares(split)
        dist.all_reduce(squared)
        norm = (squared + sum_of_squares(whole).to(squared)).sqrt()
        if bound < math.inf:
            factor = (bound / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
            torch._foreach_mul_([*split, *whole], factor)
        return norm

    def local_shards(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        kept: list[Any] = list(tensors)
        return [t.to_local() if is_sharded(t) else t for t in kept]

    def full_tensor(self, tensor: Any) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        full = tensor.full_tensor()  # a collective: all take part, one keeps it
        return full.cpu() if self.ranks.is_main else full.new_empty(0)

    def distribute(self, whole: Tensor, like: Any) -> Tensor:
        return sharded_like(like, whole)


def sum_of_squares(tensors: list[Any]) -> Tensor:
    """Of all their numbers, in one."""
    if not tensors:
        return torch.zeros(())
    return torch.stack([norm.square() for norm in torch._foreach_norm(tensors)]).sum()


def strategy(mode: str, ranks: Ranks, device: torch.device) -> SingleProcess:
    """The strategy of ``mode``, "ddp" or "fsdp"; ``UserError`` for devices that do not fit."""
    if ranks.is_single:
        return SingleProcess()
    check_devices(ranks, device)
    return FullyShard(ranks, device) if mode == "fsdp" else DataParallel(ranks)


def check_devices(ranks: Ranks, device: torch.device) -> None:
    """Refuse devices of several kinds, which draw different random numbers, and shared GPUs."""
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"training.device {device} cannot be shared among {ranks.size} processes")
    kind, gpu = device.type, ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind, gpu = properties.name, str(getattr(properties, "uuid", ""))
    devices = ranks.all_gather((kind, gpu))
    if len({kind for kind, _ in devices}) > 1:
        by_rank = ", ".join(f"{i}: {kind}" for i, (kind, _) in enumerate(devices))
        raise UserError(f"the processes of a run need devices of one kind, got {by_rank}")
    if gpu and len({gpu for _, gpu in devices}) < len(devices):
        raise UserError(
            f"{ranks.size} processes share {len({gpu for _, gpu in devices})} GPUs: start as many "
            f"on a node as it has GPUs, with training.device=auto"
        )
