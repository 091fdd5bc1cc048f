"""All private names of torch that hibana reads, each with its purpose and its public replacement, if any.

Most entries are plain aliases, which add no time to calls and which ``torch.compile`` recognizes.
"""

import sys
from collections import OrderedDict
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

# Checks whether a call is traced or transformed. They run at every call, so each is one C function.

jit_trace = torch._C._get_tracing_state
"""State of a running ``torch.jit.trace``, or None. Public: ``torch.jit.is_tracing``, which Dynamo rejects."""

dispatch_mode_count = torch._C._len_torch_dispatch_stack
"""Number of active ``__torch_dispatch__`` modes. No public equivalent."""

current_transform = torch._C._functorch.peek_interpreter_stack
"""Innermost active transform of ``torch.func``, or None. No public equivalent."""

are_transforms_active = torch._C._are_functorch_transforms_active
"""Whether any transform of ``torch.func`` is active. No public equivalent."""


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation is active. No public equivalent."""
    return forward_ad._current_level >= 0


def is_vmap_active() -> bool:
    """Whether ``torch.vmap`` is among the active transforms. No public equivalent."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key() == torch._C._functorch.TransformType.Vmap for transform in transforms)


def is_fake(tensor: Tensor) -> bool:
    """Whether `tensor` has a shape but no values, as under ``torch.export``. No public equivalent."""
    from torch._subclasses.fake_tensor import is_fake as is_fake_tensor

    return is_fake_tensor(tensor)


DYNAMO_COMPILES_CELLS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
"""Whether Dynamo calls functions marked ``assume_constant_result`` with a module (torch 2.12 and newer)."""

disable_dynamo: Any = torch._disable_dynamo  # type: ignore[attr-defined]
"""``torch.compiler.disable`` as a decorator that does not load torch's compiler until a call is compiled."""

# Batches of gradients (``is_grads_batched=True``). No public equivalents.

is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor is a batch of gradients of ``torch.autograd.grad(..., is_grads_batched=True)``."""

is_transformed = torch._C._functorch.is_batchedtensor
"""Whether a tensor is batched by ``torch.vmap``."""

# The autograd engine.

will_execute = torch._C._will_engine_execute_node
"""Whether the running backward pass executes a node. No public equivalent."""


def run_backward(
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    *,
    keep_graph: bool = False,
) -> Any:
    """Gradients of `outputs` by `inputs`; None for an input that the outputs do not depend on.

    Public: ``torch.autograd.grad(..., allow_unused=True)``, which imports sympy to compare shapes.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    return engine.run_backward(
        outputs, grads, keep_graph, False, inputs, allow_unreachable=True, accumulate_grad=False
    )


def hooks_of(tensor: Tensor) -> "OrderedDict[int, Any]":
    """The dictionary with all present and future hooks of `tensor`. No public equivalent."""
    hooks = tensor._backward_hooks
    if hooks is None:  # creates the dictionary like Tensor.register_hook
        hooks = tensor._backward_hooks = OrderedDict()
        if tensor.grad_fn is not None:
            tensor.grad_fn._register_hook_dict(tensor)
    assert isinstance(hooks, OrderedDict)
    return hooks


def saved_tensor_hooks() -> Any:
    """Innermost hooks for tensors saved for the backward (a checkpoint sets them), or None."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


# Operators and modules.

STATE = torch._C
"""Module whose functions read and set states of the process; torch's operations are in other modules."""

has_global_hooks: Any = torch.nn.modules.module._has_any_global_hook
"""Whether hooks are registered that each call of a module runs. No public equivalent."""

MODULE_CALL = nn.Module._call_impl.__code__
"""The code of torch's call of a module; a frame with it names the module."""


def forward_pre_hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that run before each forward of `module`. No public equivalent."""
    return list(module._forward_pre_hooks.values())


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks that run after its forward. No public equivalent."""
    return bool(module._forward_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs hooks that are registered on it, or on all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or has_global_hooks()
    )


def has_tensor_hooks(tensor: Tensor) -> bool:
    """Whether `tensor` has hooks that read its gradient. No public equivalent."""
    return bool(tensor._backward_hooks)


def non_persistent_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers of `module` that its state does not contain. No public equivalent."""
    return module._non_persistent_buffers_set


def storage_key(tensor: Tensor) -> int:
    """A number that is equal for tensors that share their memory, while one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


def is_compiler_loaded() -> bool:
    """Whether torch's compiler was imported."""
    return "torch._dynamo" in sys.modules


OpOverload: TypeAlias = torch._ops.OpOverload
"""Type of an ATen operator such as ``torch.ops.aten.add.Tensor``."""

OpNamespace: TypeAlias = torch._ops._OpNamespace
"""Type of ``torch.ops.hibana``; a subclass registers the operators on first use."""

to_dtype = torch.ops.aten._to_copy.default
"""The ATen operator behind ``Tensor.to(dtype)`` in a traced graph."""

without_torch_function = torch._C.DisableTorchFunction
"""Context that disables ``__torch_function__``. No public equivalent."""


def scan(*args: Any, **kwargs: Any) -> Any:
    """``scan`` as a node of an exported program. Not public yet."""
    from torch._higher_order_ops.scan import scan as higher_order_scan

    return higher_order_scan(*args, **kwargs)


onednn_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""``input W^T + bias`` of float32 matrices by oneDNN, or None. Public: ``torch.addmm``, which calls MKL."""
