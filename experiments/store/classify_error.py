"""Which failure class an exception is: nan, oom, disk_full, io_error, lost_node, bad_data, bug."""

import torch

from fewstep.errors import UserError
from fewstep.experiments.distributed.process_group import is_loss
from fewstep.files import IO_ERRORS, io_error_class


def failure_class(error: BaseException) -> str:
    """nan | oom | disk_full | io_error | lost_node | bad_data | bug, of an exception."""
    if isinstance(error, FloatingPointError):
        return "nan"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"  # what torch's CPU allocator says
    if is_loss(error):
        return "lost_node"
    if (kind := io_error_class(error)) is not None:
        return kind
    for kind, numbers in IO_ERRORS.items():
        if any(f"(os error {number})" in str(error) for number in numbers):
            return kind  # what safetensors says
    return "bad_data" if isinstance(error, UserError) else "bug"
