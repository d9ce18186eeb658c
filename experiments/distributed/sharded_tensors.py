"""Tensors of which every process keeps a part (DTensor), made whole and split again."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, kept in parts."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Any) -> Tensor:
    """The whole of a tensor, in every process; collective where it is kept in parts."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(like: Any, whole: Tensor) -> Tensor:
    """``whole``, which every process has, kept as ``like`` is."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, places = like.device_mesh, like.placements
    return distribute_tensor(whole.to(like.device), mesh, places, src_data_rank=None)
