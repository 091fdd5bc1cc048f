"""Nodes of autograd that can be differentiated once: what a second derivative is told."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["applied", "differentiated_once"]


def applied(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``node.apply`` without what it does for the transforms of ``torch.func``, whose calls never come there.

    That costs a good part of a small call.
    """
    below: Any = super(torch.autograd.Function, node)
    apply: Callable[..., Any] = below.apply
    return apply


def differentiated_once(backward: Callable[..., Any], instead: str) -> Callable[..., Any]:
    """`backward`, whose gradients raise where they are differentiated, saying what to do `instead`.

    Torch's own ``once_differentiable`` can't be told what to say, and is silent where a gradient that arrives
    is a constant, and where ``torch.autograd.grad`` is asked for tensors that other ways lead to. So what is
    returned here hangs on every leaf that the node's inputs were made of.
    """

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        found = found if isinstance(found, tuple) else (found,)
        given = [g for g in found if isinstance(g, Tensor)]
        message = f"twice differentiated, what can be differentiated once (once_differentiable): {instead}"
        arrived = [g for g in grads if g is not None]
        hanging = iter(_refused(message, len(given), *given, *arrived, *_leaves(ctx)))
        return tuple(next(hanging) if isinstance(g, Tensor) else g for g in found)

    return once


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.message)


_refused: Callable[..., Any] = _Refused.apply


def _leaves(node: Any) -> list[Tensor]:
    """Every leaf that what `node` was given was made of."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    rest = [node]
    while rest:
        for above, _ in rest.pop().next_functions:
            if above is not None and above not in seen:
                seen.add(above)
                rest.append(above)
                if (leaf := getattr(above, "variable", None)) is not None:
                    found[id(leaf)] = leaf
    return list(found.values())
