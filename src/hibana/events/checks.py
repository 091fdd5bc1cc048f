"""Whether kernels can take a layer's tensors: asked in one place, before the address of any is taken.

Where they can't, the call is torch's: its result, or its error.
"""

from functools import partial

import torch
from torch import Tensor, nn

from hibana.loop.derivatives import differentiated_once

__all__ = ["alike_each_step", "dense_for_more", "misfit", "pair", "plain"]


dense_for_more = partial(
    differentiated_once,
    instead='mode = "dense" of hb.Linear and hb.Conv2d, and torch.nn.MaxPool2d, have further derivatives',
)
"""For the backward of a node."""


def plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32 numbers on the CPU, and nothing but autograd watches the call."""
    return (
        not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None  # of torch.jit.trace
        and all(
            t is None
            or (
                type(t) in (Tensor, nn.Parameter)
                and t.dtype == torch.float32
                and t.device.type == "cpu"
                and t.layout == torch.strided
                and not t.is_neg()
                and not t._is_zerotensor()
            )
            for t in tensors
        )
    )


def misfit(weight: Tensor, bias: Tensor | None, channels: int, dimensions: int) -> str | None:
    """Why `weight` is not one of `dimensions` dimensions for `channels` of the input, with `bias`.

    The sizes that a layer was made with do not matter: its tensors may have been replaced.
    """
    if weight.ndim != dimensions or weight.shape[1] != channels:
        return f"the weight has the shape {tuple(weight.shape)}, the input {channels} features or channels"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"the bias has the shape {tuple(bias.shape)}, not ({weight.shape[0]},)"
    return None


def alike_each_step(inputs: Tensor) -> bool:
    """Whether one step of `inputs`, ``[T, ...]``, does for all: they are expanded over time (stride zero).

    Not if the gradient of each step is wanted by itself: by a leaf, or by a hook on `inputs` or
    ``retain_grad`` (of views on the way to them, and of what is asked for later, that is not seen).
    """
    if inputs.shape[0] < 2 or inputs.stride(0) != 0 or not inputs.numel():
        return False
    if not inputs.requires_grad or not torch.is_grad_enabled():
        return True
    if inputs._backward_hooks or inputs.retains_grad:
        return False
    node = inputs.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "ExpandBackward0"


_VIEWS = {"ViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward1"}
_VIEWS |= {"TransposeBackward0", "PermuteBackward0"}


def pair(size: int | tuple[int, ...] | str) -> tuple[int, int]:
    """`size` down and across."""
    if isinstance(size, tuple):
        return size[0], size[-1]
    return int(size), int(size)
