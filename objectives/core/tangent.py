"""Derivatives of a network along a direction: the value and its tangent in one pass."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.errors import UserError
from fewstep.objectives.core.base import Net
from fewstep.objectives.core.batch_math import expand, same_dropout

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor]


def jvp(
    net: Net,
    f: Function,
    primals: Tensors,
    tangents: Tensors,
    *,
    keep_gradient: bool = False,
    step: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``f(*primals)``, and its derivative along ``tangents``, detached unless ``keep_gradient``.

    ``step``, of each row or of all: the derivative by central differences (``by_differences``).

    ``f`` calls ``net`` once. One dual-number pass gives both, and the value may be back-propagated;
    with ``keep_gradient`` the derivative may be, too, for twice the cost of the backward pass.
    Fused attention kernels have no forward-mode derivative in torch 2.13, hence the MATH backend.

    A compiled network needs the whole pass compiled: within an eager one, torch quietly runs it
    uncompiled (pytorch issue 128711). One that recomputes its activations in the backward pass
    cannot do so under dual numbers: its value and its tangent are taken apart, or, with
    ``keep_gradient``, all activations kept.
    """
    if step is not None:
        if keep_gradient:
            raise ValueError("a derivative by differences has no gradient here")
        value, tangent = by_differences(f, primals, tangents, step)
        _observe(f, primals, tangents, tangent)
        return value, tangent
    module: Any = net
    compiled = hasattr(module, "_orig_mod")
    if compiled:
        module = module._orig_mod
    derivative = _jvp_with_gradient if keep_gradient else _jvp
    if compiled:
        derivative = torch.compile(derivative)
    recomputes = getattr(module, "checkpointing", False) and torch.is_grad_enabled()
    apart = recomputes and not keep_gradient
    with contextlib.ExitStack() as during:
        during.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recomputes:
            during.enter_context(_activations_kept(module))
        if apart:
            during.enter_context(torch.no_grad())
            during.enter_context(same_dropout(primals[0]))
        value, tangent = derivative(f, primals, tangents)
    if apart:
        value = f(*primals)  # not under MATH: the backward pass, which repeats it, will not be
    _observe(f, primals, tangents, tangent.detach())
    return value, tangent


def by_differences(
    f: Function, primals: Tensors, tangents: Tensors, step: float | Tensor
) -> tuple[Tensor, Tensor]:
    """``f(*primals)``, and (f(p + step u) - f(p - step u)) / (2 step) without gradient.

    ``step``: one, or (B,).

    Two passes forward more, of any network: no dual numbers, any attention kernel. Its error grows
    with step^2, and with the rounding of f over step: no method for bfloat16. Dropout is the same
    in all three passes.
    """
    h = torch.as_tensor(step, dtype=primals[0].dtype, device=primals[0].device)
    h = h.expand(len(primals[0]))
    ends = []
    for sign in (1, -1):
        with torch.no_grad(), same_dropout(primals[0]):
            moved = (p + sign * expand(h, p) * u for p, u in zip(primals, tangents, strict=True))
            ends.append(f(*moved))
    return f(*primals), (ends[0] - ends[1]) / expand(2 * h, ends[0])


@contextlib.contextmanager
def _activations_kept(module: Any) -> Iterator[None]:
    module.checkpointing = False
    try:
        yield
    finally:
        module.checkpointing = True


def _jvp(f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    with LinearLayers():
        value, tangent = _dual(f, primals, tangents)
    return value, tangent.detach()


def _jvp_with_gradient(f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    with DifferentiableLayers():
        return _dual(f, primals, tangents)


def _dual(f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    own = tuple(p.clone() for p in primals)  # torch cannot compile a dual number in a view
    value, tangent = torch.func.jvp(f, own, tangents)  # type: ignore[misc]
    return value, tangent


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
                slope = self.slope(func, tangent, weight, *rest)
                return forward_ad.make_dual(func(value, weight, bias, *rest), slope, level=0)
        return func(*args, **(kwargs or {}))

    def slope(self, func: Any, tangent: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return func(tangent.detach(), weight.detach(), None, *rest)


class DifferentiableLayers(LinearLayers):
    """The same for a tangent that is back-propagated.

    torch 2.13 takes mean and variance of a layer norm for constants there, which gives wrong
    gradients (pytorch issue 196700). So it is written out; a batch norm has the same fault.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (nnf.layer_norm, torch.layer_norm):
            return layer_norm(*args, **(kwargs or {}))
        if func in (nnf.batch_norm, torch.batch_norm):
            raise UserError("the gradient of a batch norm's tangent is wrong in torch: use another")
        return super().__torch_function__(func, types, args, kwargs)

    def slope(self, func: Any, tangent: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return func(tangent, weight, None, *rest)


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """``torch.nn.functional.layer_norm``, written out so that torch differentiates it twice.

    Statistics are taken in float32 at least, as torch does.
    """
    axes = tuple(range(-len(normalized_shape), 0))
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = exact - exact.mean(axes, keepdim=True)
    out = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).to(x.dtype)


TangentObserver = Callable[[Function, Tensors, Tensors, Tensor], None]
"""Called with f, its primals, its tangents and the derivative."""
_observers: list[TangentObserver] = []


def _observe(f: Function, primals: Tensors, tangents: Tensors, tangent: Tensor) -> None:
    for observer in _observers:
        observer(f, primals, tangents, tangent)


@contextlib.contextmanager
def observe_tangents(observer: TangentObserver) -> Iterator[None]:
    """``observer`` is called after every ``jvp`` inside; ``fewstep check`` needs that."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
