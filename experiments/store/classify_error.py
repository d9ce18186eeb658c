"""Which failure class an exception is: nan, oom, disk_full, lost_node, bad_data or bug."""

import errno

import torch

from fewstep.errors import UserError
from fewstep.experiments.distributed.process_group import is_loss

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def failure_class(error: BaseException) -> str:
    """nan | oom | disk_full | lost_node | bad_data | bug, of an exception."""
    if isinstance(error, FloatingPointError):
        return "nan"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"  # what torch's CPU allocator says
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "disk_full"
    if any(f"(os error {number})" in str(error) for number in DISK_FULL):
        return "disk_full"  # what safetensors says
    if is_loss(error):
        return "lost_node"
    return "bad_data" if isinstance(error, UserError) else "bug"
