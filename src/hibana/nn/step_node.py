"""The node of autograd of one step: a linear layer, if there is one, and the neurons after it.

A network that is stepped has such a node for each layer and step. The gradient of the weights is a sum over
all steps: each node leaves its part, and at the end of the backward one product of matrices takes them all
(:class:`WeightSums`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler import State
from hibana.compiler.autograd import saved_tensors
from hibana.compiler.derivatives import applied, are_batched, differentiated_once
from hibana.compiler.one_step import OneStep

__all__ = ["WeightSums", "step"]

TASKS = 64
"""Backwards that may leave parts at a time; more of them take products of their own."""


class WeightSums:
    """Where the nodes of a linear layer leave their parts of the gradient of its weight and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias, self.about = weight, bias, _about(weight, bias)
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """By the backward: inputs and gradients of outputs, ``[batch, features]``."""
        learning = torch.is_grad_enabled() and any(t.requires_grad for t in (weight, bias) if t is not None)
        self.token: Tensor | None = _sum(self.parts, weight, bias) if learning else None
        """An input of each node, so that what takes the parts runs after all of them."""
        self.node = None if self.token is None else self.token.grad_fn

    def are_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a gradient of theirs goes to this `weight` and `bias`."""
        return self.weight is weight and self.bias is bias and self.about == _about(weight, bias)


def _about(*tensors: Tensor | None) -> list[Any]:
    return [(t._version, t.requires_grad, t.dtype, t.data_ptr()) for t in tensors if t is not None]


class _Sum(torch.autograd.Function):
    """The gradients of a weight and a bias, from the parts that the nodes of all steps left."""

    @staticmethod
    def forward(ctx: Any, parts: dict[int, Any], weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.parts = parts
        ctx.set_materialize_grads(False)
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> Any:
        left = ctx.parts.pop(_running(), None)
        if left is None:
            return None, None, None
        inputs, grads = (torch.cat(part) for part in zip(*left, strict=True))
        _, of_weight, of_bias = ctx.needs_input_grad
        return None, grads.T @ inputs if of_weight else None, grads.sum(0) if of_bias else None


_sum = applied(_Sum)


def _running() -> int:
    task: int = torch._C._current_graph_task_id()
    return task


def step(
    one: OneStep,
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    state: State,
    sums: WeightSums | None,
) -> tuple[Tensor, State]:
    """What the neurons of `one` emit for ``inputs W^T + b``, or for `inputs`, and their next state."""
    token = None if sums is None else sums.token
    outputs, *ended = _apply(one, sums, token, inputs, weight, bias, *state)
    return outputs, tuple(ended)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        one: OneStep,
        sums: WeightSums | None,
        token: Tensor | None,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *state: Tensor,
    ) -> Any:
        currents = inputs if weight is None else functional.linear(inputs, weight, bias)
        outputs, ended, residuals = one.keeping(currents, state)
        _, _, _, of_inputs, of_weight, *_ = ctx.needs_input_grad
        if weight is None and inputs.grad_fn is None:
            currents = inputs.detach()  # of a leaf what it is now, whatever ``inputs.data`` is set to
        ctx.save_for_backward(
            *(currents if one.reads_input else None, inputs if of_weight else None),
            *(weight if of_inputs else None, *[state[i] for i in one.first], *residuals),
        )
        ctx.call = one, sums, weight is not None, inputs.shape
        ctx.set_materialize_grads(False)
        return outputs, *ended

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        whole = torch.is_grad_enabled() or are_batched(grads)
        return (_once if whole else _backward)(ctx, *grads)


def _backward(ctx: Any, *grads: Tensor | None, whole: bool = False) -> Any:
    """The gradients; with `whole` those of weight and bias too, else they are left to the layer's sums."""
    one, sums, is_linear, shape = ctx.call
    currents, inputs, weight, *kept = saved_tensors(ctx)
    count = len(one.first)
    of_outputs, *last, of_emitted = grads
    if of_emitted is not None:
        of_outputs = of_emitted[None] if of_outputs is None else of_outputs + of_emitted
    _, _, _, *wanted = ctx.needs_input_grad
    grad, first = one.backward(
        *(currents, kept[:count], kept[count:], _plain(of_outputs), [_plain(g) for g in last]),
        any(wanted[3:]),
    )
    to_state = [g if want else None for g, want in zip(first or wanted[3:], wanted[3:], strict=True)]
    if not is_linear:
        return None, None, None, grad, None, None, *to_state
    rows = grad.view(-1, grad.shape[-1])
    to_inputs = (rows @ weight).view(shape) if wanted[0] else None
    of_weight = of_bias = None
    if (wanted[1] or wanted[2]) and not (whole or _leaves(sums, inputs, rows)):
        whole = True
    if whole:
        of_weight = rows.T @ inputs.reshape(-1, shape[-1]) if wanted[1] else None
        of_bias = rows.sum(0) if wanted[2] else None
    return None, None, None, to_inputs, of_weight, of_bias, *to_state


def _plain(grad: Tensor | None) -> Tensor | None:
    """`grad` as kernels read it."""
    if grad is None or (grad.is_contiguous() and not grad.is_neg()):
        return grad
    return grad.resolve_neg().contiguous()


def _leaves(sums: WeightSums, inputs: Tensor | None, rows: Tensor) -> bool:
    """Leaves a part of the gradient to `sums`, if they are asked for in this backward; False if they can't."""
    if inputs is None:
        return False  # of a bias alone
    if not torch._C._will_engine_execute_node(sums.node):
        return True
    task = _running()
    left = sums.parts.get(task)
    if left is None:
        if len(sums.parts) >= TASKS:
            return False
        left = sums.parts[task] = []
    left.append((inputs.reshape(-1, inputs.shape[-1]), rows))
    return True


def _whole(ctx: Any, *grads: Tensor | None) -> Any:
    return _backward(ctx, *grads, whole=True)


_once = differentiated_once(
    _whole,
    'layer.backend = "reference", or hibana.unroll(..., backend="reference"), has derivatives of every order',
)
_apply: Callable[..., Any] = applied(_Step)
