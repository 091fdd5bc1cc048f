"""The node of autograd of one step: linear layers and the neurons after them.

A network that is stepped has such a node for each step. The gradient of the weights is a sum over
all steps: each node leaves its part, and at the end of the backward one product of matrices takes them all
(:class:`WeightSums`).
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler import State
from hibana.compiler.autograd import saved_tensors
from hibana.compiler.derivatives import applied, are_batched, differentiated_once, running_backward
from hibana.compiler.one_step import OneStep

__all__ = ["Link", "WeightSums", "step"]

TASKS = 64
"""Backwards that may leave parts at a time; more of them take products of their own."""


class WeightSums:
    """Where the nodes of a linear layer leave their parts of the gradient of its weight and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.about = _about(weight), bias is None or _about(bias)
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """By the backward: inputs and gradients of outputs, ``[1, ..., features]``."""
        learning = torch.is_grad_enabled() and any(t.requires_grad for t in (weight, bias) if t is not None)
        self.token: Tensor | None = _sum(self.parts, weight, bias) if learning else None
        """An input of each node, so that what takes the parts runs after all of them."""
        self.node = None if self.token is None else self.token.grad_fn

    def are_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a gradient of theirs goes to this `weight` and `bias`."""
        if self.weight is not weight or self.bias is not bias:
            return False
        return self.about == (_about(weight), bias is None or _about(bias))


def _about(tensor: Tensor) -> Any:
    return tensor._version, tensor.requires_grad, tensor.dtype


class _Sum(torch.autograd.Function):
    """The gradients of a weight and a bias, from the parts that the nodes of all steps left."""

    @staticmethod
    def forward(ctx: Any, parts: dict[int, Any], weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.parts = parts
        ctx.set_materialize_grads(False)
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> Any:
        left = ctx.parts.pop(running_backward(), None)
        if left is None:
            return None, None, None
        inputs, grads = (torch.cat(part).flatten(0, -2) for part in zip(*left, strict=True))
        _, of_weight, of_bias = ctx.needs_input_grad
        return None, grads.T @ inputs if of_weight else None, grads.sum(0) if of_bias else None


_sum = applied(_Sum)


class Link(NamedTuple):
    """A linear layer, if there is one, and the neurons after it, in one step."""

    one: OneStep
    weight: Tensor | None
    bias: Tensor | None
    sums: WeightSums | None
    """Of the linear layer."""
    state: State


def step(links: Sequence[Link], inputs: Tensor) -> tuple[Tensor, list[State]]:
    """What the last of `links`, one after the other, emits for `inputs`, and the next state of each."""
    tensors: list[Tensor | None] = []
    for _, weight, bias, sums, state in links:
        tensors += [None if sums is None else sums.token, weight, bias, *state]
    outputs, *ended = _apply([(link.one, link.sums) for link in links], inputs, *tensors)
    after = iter(ended)
    return outputs, [tuple(islice(after, link.one.count)) for link in links]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calls: list[Any], inputs: Tensor, *tensors: Tensor | None) -> Any:
        _, flows, *needed = ctx.needs_input_grad
        saved: list[Tensor | None] = []
        ended: list[Tensor] = []
        constant: list[Tensor] = []
        records = []
        at, values = 0, inputs
        for one, sums in calls:
            _, weight, bias, *state = tensors[at : (end := at + 3 + one.count)]
            wanted = needed[at + 1 : end]
            currents = values if weight is None else functional.linear(values, weight, bias)
            outputs, after, residuals = one.keeping(currents, state)
            if currents is inputs and inputs.grad_fn is None:
                currents = inputs.detach()  # of a leaf what it is now, whatever ``inputs.data`` is set to
            saved += [currents if one.reads_input else None, values if wanted[0] else None]
            saved += [weight if flows else None, *[state[i] for i in one.first], *residuals]
            records.append((one, sums, weight is not None, values.shape, flows, wanted, len(residuals)))
            flows = flows or any(wanted)
            constant += [] if flows else after
            ended += after
            at, values = end, outputs
        ctx.save_for_backward(*saved)
        ctx.records = records
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        return values, *ended

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        whole = torch.is_grad_enabled() or are_batched(grads)
        return (_once if whole else _backward)(ctx, *grads)


def _backward(ctx: Any, of_outputs: Tensor | None, *of_states: Tensor | None, whole: bool = False) -> Any:
    """The gradients; with `whole` those of weight and bias too, else they are left to the layer's sums."""
    saved, found = list(saved_tensors(ctx)), list[Tensor | None]()
    last = list(of_states)
    grad: Tensor | None = of_outputs
    for one, sums, is_linear, shape, flows, wanted, kept in reversed(ctx.records):
        of_weight, of_bias, *of_state = wanted
        *of_carried, of_emitted = last[-one.count :]
        residuals, first = (
            saved[len(saved) - kept :],
            saved[len(saved) - kept - len(one.first) : len(saved) - kept],
        )
        currents, values, weight = saved[(begin := len(saved) - kept - len(one.first) - 3) : begin + 3]
        del saved[begin:], last[-one.count :]
        if not (flows or any(wanted)):
            found = [*[None] * (3 + one.count), *found]  # and so of all before it
            grad = None
            continue
        if of_emitted is not None:
            grad = of_emitted[None] if grad is None else grad + of_emitted
        grad, before = one.backward(
            currents, first, residuals, _plain(grad), [_plain(g) for g in of_carried], any(of_state)
        )
        to_weight = to_bias = None
        to_state = [g if want else None for g, want in zip(before or of_state, of_state, strict=True)]
        if is_linear and grad is not None:
            rows = grad.view(-1, grad.shape[-1])
            if (of_weight or of_bias) and (whole or not _leaves(sums, values, grad)):
                to_weight = rows.T @ values.reshape(-1, shape[-1]) if of_weight else None
                to_bias = rows.sum(0) if of_bias else None
            grad = (rows @ weight).view(shape) if flows else None
        found = [None, to_weight, to_bias, *to_state, *found]
    return None, grad, *found


def _plain(grad: Tensor | None) -> Tensor | None:
    """`grad` as kernels read it."""
    if grad is None or (grad.is_contiguous() and not grad.is_neg()):
        return grad
    return grad.resolve_neg().contiguous()


def _leaves(sums: Any, inputs: Tensor | None, grad: Tensor) -> bool:
    """Leaves a part of the gradient to `sums`, if this backward asks for them; False if it can't."""
    if inputs is None:
        return False  # of a bias alone
    if not torch._C._will_engine_execute_node(sums.node):
        return True
    task = running_backward()
    left = sums.parts.get(task)
    if left is None:
        if len(sums.parts) >= TASKS:
            return False
        left = sums.parts[task] = []
    left.append((inputs, grad))
    return True


def _whole(ctx: Any, *grads: Tensor | None) -> Any:
    return _backward(ctx, *grads, whole=True)


_once = differentiated_once(
    _whole,
    'layer.backend = "reference", or hibana.unroll(..., backend="reference"), has derivatives of every order',
)
_apply: Callable[..., Any] = applied(_Step)
