"""Derivatives of a network along a direction: the value and its tangent in one pass."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.objectives.core.base import Net
from fewstep.objectives.core.batch_math import same_dropout

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor]


def jvp(net: Net, f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    """``f(*primals)``, and its derivative along ``tangents``, which is detached.

    ``f`` calls ``net`` once. One dual-number pass gives both, and the value may be back-propagated.
    Fused attention kernels have no forward-mode derivative in torch 2.13, hence the MATH backend.

    A compiled network needs the whole pass compiled: within an eager one, torch quietly runs it
    uncompiled (pytorch issue 128711). One that recomputes its activations in the backward pass
    cannot do so under dual numbers, so its value and its tangent are taken apart.
    """
    module: Any = net
    compiled = hasattr(module, "_orig_mod")
    if compiled:
        module = module._orig_mod
    derivative = torch.compile(_jvp) if compiled else _jvp
    if getattr(module, "checkpointing", False) and torch.is_grad_enabled():
        module.checkpointing = False
        try:
            with torch.no_grad(), same_dropout(primals[0]), sdpa_kernel(SDPBackend.MATH):
                _, tangent = derivative(f, primals, tangents)
        finally:
            module.checkpointing = True
        value = f(*primals)  # not under MATH: the backward pass, which repeats it, will not be
    else:
        with sdpa_kernel(SDPBackend.MATH):
            value, tangent = derivative(f, primals, tangents)
    for observer in _observers:
        observer(f, primals, tangents, tangent)
    return value, tangent


def _jvp(f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    own = tuple(p.clone() for p in primals)  # torch cannot compile a dual number in a view
    with LinearLayers():
        value, tangent = torch.func.jvp(f, own, tangents)  # type: ignore[misc]
    return value, tangent.detach()


class LinearLayers(TorchFunctionMode):
    """The tangent of a linear layer or a convolution in one product, W dx, not W dx + dW x.

    torch 2.13 takes both, though dW is 0: the weights have no tangent. With one, a pass with a
    tangent costs 2 passes forward, not 3. And the tangent of a convolution works under autocast,
    where torch's own mixes precisions.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (nnf.linear, nnf.conv2d) and not kwargs:
            x, weight, bias, *rest = args if len(args) > 2 else (*args, None)
            value, tangent = forward_ad.unpack_dual(x, level=0)
            if tangent is not None:
                slope = func(tangent.detach(), weight.detach(), None, *rest)
                return forward_ad.make_dual(func(value, weight, bias, *rest), slope, level=0)
        return func(*args, **(kwargs or {}))


TangentObserver = Callable[[Function, Tensors, Tensors, Tensor], None]
"""Called with f, its primals, its tangents and the derivative."""
_observers: list[TangentObserver] = []


@contextlib.contextmanager
def observe_tangents(observer: TangentObserver) -> Iterator[None]:
    """``observer`` is called after every ``jvp`` inside; ``fewstep check`` needs that."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
