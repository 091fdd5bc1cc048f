"""Checks of a layer's tensors: whether kernels accept their dtype, device, layout and shape.

A layer passes a call that its kernels do not accept to torch, which returns a result or raises its own error.
"""

from functools import partial

import torch
from torch import Tensor, nn

from hibana.compiler.derivatives import once_differentiable
from hibana.runtime import available, torch_internals

__all__ = ["check_no_time", "check_saved", "dense_for_more", "is_constant_over_time", "kernels_accept"]
__all__ += ["pair", "shape_error"]


dense_for_more = partial(
    once_differentiable,
    instead='mode = "dense" of hb.Linear and hb.Conv2d, and torch.nn.MaxPool2d, have further derivatives',
)
"""A decorator of ``autograd.Function.backward``: second derivatives raise RuntimeError with this advice."""


def kernels_accept(*tensors: Tensor | None) -> bool:
    """Whether kernels accept all `tensors`; None counts as accepted.

    Each must be a strided float32 tensor or parameter on the CPU, without a pending negation. No transform or
    dispatch mode may be active, and this process must be able to compile native code.
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
    """Checks that ``tensor.data``, saved for a backward, was not set to another shape or dtype.

    Raises RuntimeError if its shape is not `shape`, or its dtype is not float32.
    """
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise RuntimeError(
            "weights and inputs must keep their shape and dtype between forward and backward: a tensor of "
            f"{tuple(shape)}, torch.float32 had its `.data` set to {tuple(tensor.shape)}, {tensor.dtype}"
        )


def shape_error(weight: torch.Size, bias: torch.Size | None, channels: int, dimensions: int) -> str | None:
    """Why `weight` ``[outputs, channels, ...]`` and `bias` ``[outputs]`` do not fit; None if they do.

    Both are shapes; the weight must have `dimensions` dimensions, and `channels` are those of the input. The
    layer's attributes are not read, since a user may have replaced its parameters.
    """
    if len(weight) != dimensions or weight[1] != channels:
        return f"the weight has the shape {tuple(weight)}, the input {channels} features or channels"
    if bias is not None and bias != weight[:1]:
        return f"the bias has the shape {tuple(bias)}, not ({weight[0]},)"
    return None


def check_no_time(layer: nn.Module, inputs: Tensor, dimensions: int) -> None:
    """Checks that `inputs` of a `layer` of images with `dimensions` spatial dimensions have no time axis.

    Raises ValueError if `inputs` have more than ``dimensions + 2`` dimensions.
    """
    if inputs.ndim > dimensions + 2:
        sizes = ("length", "height, width", "depth, height, width")[dimensions - 1]
        name = type(layer).__name__
        raise ValueError(
            f"input of {name} must be [N, channels, {sizes}], got shape {tuple(inputs.shape)}; "
            f"hibana.EachStep({name}(...)) calls it at each step of [T, batch, channels, {sizes}], and "
            "hibana.optimize(net) makes a network of torch.nn take time"
        )


def is_constant_over_time(inputs: Tensor) -> bool:
    """Whether `inputs`, ``[T, ...]``, are one step expanded over time, so that computing one suffices.

    The stride of time must be zero. False if something reads the gradient of a single step: `inputs` or the
    expanded tensor are a leaf, `inputs` have a hook, or ``retain_grad`` was called on them. Hooks on
    views between the expanded tensor and `inputs`, and hooks that are added later, are not detected.
    """
    if inputs.shape[0] < 2 or inputs.stride(0) != 0 or not inputs.numel():
        return False
    if not inputs.requires_grad or not torch.is_grad_enabled():
        return True
    if torch_internals.has_tensor_hooks(inputs) or inputs.retains_grad:
        return False
    node = inputs.grad_fn
    while node is not None and node.name() in _VIEW_NODES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "ExpandBackward0"


_VIEW_NODES = {"ViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward1"}
_VIEW_NODES |= {"TransposeBackward0", "PermuteBackward0"}


def pair(size: int | tuple[int, ...] | str) -> tuple[int, int]:
    """`size` as (height, width)."""
    if isinstance(size, tuple):
        return size[0], size[-1]
    return int(size), int(size)
