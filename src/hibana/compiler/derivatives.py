"""Autograd functions that are differentiable once and take one gradient at a time."""

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
    """``node.apply`` without its support for ``torch.func``, which would slow down small calls."""
    # `super` skips the `apply` of `torch.autograd.Function`, which supports ``torch.func``
    base: Any = super(torch.autograd.Function, node)
    apply: Callable[..., Any] = base.apply
    return apply


def once_differentiable(backward: Callable[..., Any], instead: str) -> Callable[..., Any]:
    """`backward` with gradients that raise if they are differentiated; the error recommends `instead`.

    Torch's own ``once_differentiable`` has a fixed message. It raises nothing if the incoming gradient is a
    constant, or if ``torch.autograd.grad`` reaches the inputs on another path. Here the gradients depend on
    every leaf behind the node's inputs, so that any differentiation raises.
    """

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        """The gradients of the node `ctx`; with grad mode on, they raise if they are differentiated."""
        check_unbatched(grads)
        with without_autocast(), torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        results = results if isinstance(results, tuple) else (results,)
        tensors = [g for g in results if isinstance(g, Tensor)]
        message = f"differentiated twice, but can be differentiated once (once_differentiable): {instead}"
        incoming = [g for g in grads if g is not None]
        checked_gradients = iter(
            _raise_if_differentiated(message, len(tensors), *tensors, *incoming, *_leaves(ctx))
        )
        return tuple(next(checked_gradients) if isinstance(g, Tensor) else g for g in results)

    return once


def without_autocast() -> AbstractContextManager[None]:
    """A context that disables autocast: torch's operations keep float32, as the kernels around them do."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else _NO_CONTEXT


_NO_CONTEXT = nullcontext()


def check_unbatched(grads: Sequence[Tensor | None]) -> None:
    """Raises ``RuntimeError`` if one of `grads` is a batch of gradients, which kernels can't read."""
    for grad in grads:
        if grad is not None and (_is_batched(grad) or (_are_transforms_active() and _is_transformed(grad))):
            raise RuntimeError(
                "layers of hibana take one gradient at a time, got a batch of them (is_grads_batched=True, "
                "vectorize=True, or torch.vmap): call torch.autograd.grad for each"
            )


class _RaiseIfDifferentiated(torch.autograd.Function):
    """Returns views of the first `count` tensors; a derivative through any tensor raises `message`."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Views of the first `count` tensors, each with this node as its gradient function."""
        ctx.message = message
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Raises ``RuntimeError``, since a gradient was differentiated."""
        raise RuntimeError(ctx.message)


_raise_if_differentiated: Callable[..., Any] = _RaiseIfDifferentiated.apply


def _leaves(node: Any) -> list[Tensor]:
    """The leaf tensors that the inputs of `node` depend on."""
    leaves: dict[int, Tensor] = {}
    visited: set[Any] = set()
    stack = [node]  # a depth-first search without recursion: a graph may be deeper than Python's stack
    while stack:
        for function, _ in stack.pop().next_functions:
            if function is not None and function not in visited:
                visited.add(function)
                stack.append(function)
                if (leaf := getattr(function, "variable", None)) is not None:
                    leaves[id(leaf)] = leaf
    return list(leaves.values())
