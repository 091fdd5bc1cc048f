"""Whether kernels can take a layer's tensors: dtype, device, layout, and nothing that intercepts the call.

Where they can't, the call is torch's: its result, or its error.
"""

from functools import partial

import torch
from torch import Tensor, nn

from hibana.compiler.derivatives import once_differentiable
from hibana.runtime import available, torch_internals

__all__ = [
    "check_no_time",
    "check_saved",
    "dense_for_more",
    "is_constant_over_time",
    "kernels_accept",
    "pair",
    "shape_error",
]


dense_for_more = partial(
    once_differentiable,
    instead='mode = "dense" of hb.Linear and hb.Conv2d, and torch.nn.MaxPool2d, have further derivatives',
)
"""For the backward of a node."""


def kernels_accept(*tensors: Tensor | None) -> bool:
    """Whether all are float32 on the CPU, no transform or dispatch mode is active, and native code can be
    compiled in this process.
    """
    if (
        torch_internals.dispatch_mode_count()
        or torch_internals.are_transforms_active()
        or torch_internals.is_forward_mode()
        or torch_internals.jit_trace() is not None  # of torch.jit.trace
    ):
        return False
    for tensor in tensors:
        if tensor is not None and not (
            (type(tensor) is Tensor or type(tensor) is nn.Parameter)
            and tensor.dtype == torch.float32
            and tensor.is_cpu
            and tensor.layout == torch.strided
            and not tensor.is_neg()
            and not tensor._is_zerotensor()
        ):
            return False
    return not available.unavailable_reason()


def check_saved(tensor: Tensor, shape: torch.Size) -> None:
    """Refuses a `tensor` saved for a backward whose ``data`` was set to what kernels do not take.

    Raises:
        RuntimeError: if it has another shape than `shape`, or is not float32.
    """
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise RuntimeError(
            "weights and inputs must keep their shape and dtype between forward and backward: one was "
            f"{tuple(shape)}, torch.float32, and its `.data` was set to {tuple(tensor.shape)}, {tensor.dtype}"
        )


def shape_error(weight: torch.Size, bias: torch.Size | None, channels: int, dimensions: int) -> str | None:
    """Why a `weight` of this shape is not one of `dimensions` dimensions for `channels`, with such a `bias`.

    The sizes that a layer was made with do not matter: its tensors may have been replaced.
    """
    if len(weight) != dimensions or weight[1] != channels:
        return f"the weight has the shape {tuple(weight)}, the input {channels} features or channels"
    if bias is not None and bias != weight[:1]:
        return f"the bias has the shape {tuple(bias)}, not ({weight[0]},)"
    return None


def check_no_time(layer: nn.Module, inputs: Tensor, dimensions: int) -> None:
    """Raises a ValueError if `inputs` of a `layer` of images of so many dimensions have time too."""
    if inputs.ndim > dimensions + 2:
        sizes = ("length", "height, width", "depth, height, width")[dimensions - 1]
        name = type(layer).__name__
        raise ValueError(
            f"input of {name} must be [N, channels, {sizes}], got shape {tuple(inputs.shape)}; "
            f"hibana.EachStep({name}(...)) calls it at each step of [T, batch, channels, {sizes}], and "
            "hibana.optimize(net) makes a network of torch.nn take time"
        )


def is_constant_over_time(inputs: Tensor) -> bool:
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
    """`size` as (height, width)."""
    if isinstance(size, tuple):
        return size[0], size[-1]
    return int(size), int(size)
