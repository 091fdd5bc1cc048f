"""Autograd nodes that can be differentiated once, and take one gradient of a batch at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hibana.runtime import torch_internals

_is_batched = torch_internals.is_legacy_batched
_is_transformed = torch_internals.is_transformed
_are_transforms_active = torch_internals.are_transforms_active


def applied(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``node.apply`` without its support of ``torch.func``, a good part of a small call's time."""
    below: Any = super(torch.autograd.Function, node)
    apply: Callable[..., Any] = below.apply
    return apply


def differentiated_once(backward: Callable[..., Any], instead: str) -> Callable[..., Any]:
    """`backward`, whose gradients raise when they are differentiated, with what to do `instead`.

    Torch's own ``once_differentiable`` has a fixed message, and is silent where the incoming gradient is a
    constant, or ``torch.autograd.grad`` reaches its inputs another way. So the gradients here depend on every
    leaf that the node's inputs were made of.
    """

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return once(ctx, *grads)
        if are_batched(grads):
            return _one_by_one(once, ctx, grads)
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


def are_batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether `grads` are a batch of gradients, of ``is_grads_batched=True``.

    Raises:
        RuntimeError: if :func:`torch.vmap` made the batch.
    """
    for grad in grads:
        if grad is not None:
            if _is_batched(grad):
                return True
            if _are_transforms_active() and _is_transformed(grad):
                raise RuntimeError(
                    "layers of hibana take no batch of gradients from torch.vmap: give it to "
                    "torch.autograd.grad(..., is_grads_batched=True) instead"
                )
    return False


def _one_by_one(backward: Callable[..., Any], ctx: Any, grads: Sequence[Tensor | None]) -> Any:
    """The batch of what `backward` gives for each gradient of a batch."""
    level = torch_internals.vmap_level()
    opened = [_opened(grad, level) for grad in grads]
    size = next(len(part) for part, of_batch in opened if part is not None and of_batch)
    found = []
    for i in range(size):
        # a backward may write to what it is given
        one = backward(ctx, *[p if p is None else p[i] if of_batch else p.clone() for p, of_batch in opened])
        found.append(one if isinstance(one, tuple) else (one,))
    return tuple(
        torch_internals.add_batch_dim(torch.stack(each), 0, level) if isinstance(each[0], Tensor) else None
        for each in zip(*found, strict=True)
    )


def _opened(grad: Tensor | None, level: int) -> tuple[Tensor | None, bool]:
    """`grad` with the batch as its first dimension, and whether it is of a batch."""
    if grad is None or not _is_batched(grad):
        return grad, False
    opened: Tensor = torch_internals.remove_batch_dim(grad, level, 1, 0)
    if _is_batched(opened):
        raise RuntimeError(
            "layers of hibana take no batch of batches of gradients: flatten them to one batch"
        )
    return opened, True


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
