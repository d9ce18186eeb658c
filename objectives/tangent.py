"""Derivatives of a network along a direction: the value and its tangent in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.objectives.base import Net, same_dropout


def jvp(
    net: Net,
    f: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """``f(*primals)``, and its derivative along ``tangents``, which is detached.

    ``f`` asks ``net`` once. One dual-number pass gives both, and the value may be back-propagated.
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
    with sdpa_kernel(SDPBackend.MATH):
        if getattr(module, "checkpointing", False) and torch.is_grad_enabled():
            module.checkpointing = False
            try:
                with torch.no_grad(), same_dropout(primals[0]):
                    _, tangent = derivative(f, primals, tangents)
            finally:
                module.checkpointing = True
            value = f(*primals)
        else:
            value, tangent = derivative(f, primals, tangents)
    for watcher in _watchers:
        watcher(f, primals, tangents, tangent)
    return value, tangent


def _jvp(
    f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    value, tangent = torch.func.jvp(f, primals, tangents)  # type: ignore[misc]
    return value, tangent.detach()


Watcher = Callable[[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...], Tensor], None]
"""Told of f, its primals, its tangents and the derivative found."""
_watchers: list[Watcher] = []


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """``watcher`` is told of every ``jvp`` inside; ``fewstep check`` holds it against calculus."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
