"""Autograd nodes that can be differentiated once, and take one gradient at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hibana.runtime import torch_internals

_is_batched = torch_internals.is_legacy_batched
_is_transformed = torch_internals.is_transformed
_are_transforms_active = torch_internals.are_transforms_active


def unwrapped_apply(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``node.apply`` without its support of ``torch.func``, a good part of a small call's time."""
    below: Any = super(torch.autograd.Function, node)
    apply: Callable[..., Any] = below.apply
    return apply


def once_differentiable(backward: Callable[..., Any], instead: str) -> Callable[..., Any]:
    """`backward`, whose gradients raise when they are differentiated, with what to do `instead`.

    Torch's own ``once_differentiable`` has a fixed message, and is silent where the incoming gradient is a
    constant, or ``torch.autograd.grad`` reaches its inputs another way. So the gradients here depend on every
    leaf that the node's inputs were made of.
    """

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return once(ctx, *grads)
        check_unbatched(grads)
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


def without_autocast() -> AbstractContextManager[None]:
    """A context in which torch's operations keep float32, as the kernels around them do."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else _NOTHING


_NOTHING = nullcontext()


def check_unbatched(grads: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError if one of `grads` is a batch of gradients, which kernels can't read."""
    for grad in grads:
        if grad is not None and (_is_batched(grad) or (_are_transforms_active() and _is_transformed(grad))):
            raise RuntimeError(
                "layers of hibana take one gradient at a time, got a batch of them (is_grads_batched=True, "
                "vectorize=True, or torch.vmap): call torch.autograd.grad for each"
            )


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
    """Every leaf in the graph of the inputs of `node`."""
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
