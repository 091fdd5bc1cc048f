"""The tensors of a cell, their parametrizations, and the shapes that they broadcast to."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hibana.cells import Cell

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def evaluate_parametrizations(module: ModuleT) -> ModuleT:
    """A copy of `module` with the tensors that its parametrizations compute; `module` itself without any.

    So each tensor is computed once per call instead of at each step. The copy shares all other parameters and
    buffers; attributes that a step sets on it are lost. Dynamo can't copy a module: see
    :func:`cached_parametrizations`.
    """
    if module._modules and is_parametrized(module) and not torch.compiler.is_dynamo_compiling():
        copy: ModuleT = _copy_with_tensors(module, {})
        return copy
    return module


def cached_parametrizations() -> AbstractContextManager[Any]:
    """A context that computes each parametrized tensor once, while ``torch.compile`` traces.

    Outside of a trace it does nothing: ``torch.nn.utils.parametrize.cached`` would affect other threads too.
    """
    if torch.compiler.is_dynamo_compiling():
        return parametrize.cached()
    return nullcontext()


def is_parametrized(module: nn.Module) -> bool:
    """Whether parametrizations compute tensors of `module` or of a module in it."""
    children = module._modules
    if isinstance(children.get("parametrizations"), nn.ModuleDict):
        return True
    return any(part is not None and part._modules and is_parametrized(part) for part in children.values())


def _copy_with_tensors(module: nn.Module, copies: dict[nn.Module, Any]) -> Any:
    """The copy of :func:`evaluate_parametrizations`; `copies` holds the copies of other modules."""
    if module in copies:
        return copies[module]
    parametrizations = module._modules.get("parametrizations")
    parametrized = dict(parametrizations.items()) if isinstance(parametrizations, nn.ModuleDict) else {}
    original_class: Any = parametrize.type_before_parametrizations(module)
    copy = copies[module] = original_class.__new__(original_class)
    attributes = dict(vars(module))
    for group in ("_parameters", "_buffers"):
        tensors = {
            name: getattr(module, name)
            for name, parametrization in parametrized.items()
            if getattr(parametrization, group)
        }
        attributes[group] = getattr(module, group) | tensors
    attributes["_modules"] = {
        name: None if child is None else _copy_with_tensors(child, copies)
        for name, child in module._modules.items()
        if not (parametrized and name == "parametrizations")
    }
    vars(copy).update(attributes)
    return copy


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """The parameters of `cell`, then its buffers, by name; a tensor with two names occurs twice."""
    if not (cell._parameters or cell._buffers or cell._modules):
        return {}
    modules = list(cell.named_modules()) if cell._modules else [("", cell)]
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for group in ("_parameters", "_buffers")
        for prefix, module in modules
        for name, tensor in getattr(module, group).items()
        if tensor is not None
    }


def neuron_shapes(cell: Cell) -> list[torch.Size]:
    """The shapes of the tensors of `cell` with several numbers; sparse synapses count as one per source."""
    modules = cell.modules() if cell._modules else [cell]
    shapes = []
    for module in modules:
        sources = module._buffers.get("row_starts")
        if sources is not None:
            shapes.append(torch.Size([sources.numel() - 1]))
            continue
        tensors = (*module._parameters.values(), *module._buffers.values())
        shapes += [tensor.shape for tensor in tensors if tensor is not None and tensor.numel() > 1]
    return shapes


def fitting_shape(cell: Cell) -> tuple[int, ...]:
    """A shape of one step that the tensors of `cell` broadcast to; ``(8,)`` for a cell without tensors."""
    sizes = neuron_shapes(cell)
    if not sizes:
        return (8,)
    try:
        return tuple(torch.broadcast_shapes(*sizes))  # type: ignore[no-untyped-call] # torch lacks its type
    except RuntimeError:  # matrices, or parts of them, with as many neurons as their longest side
        return (max(size for shape in sizes for size in shape),)


def shape_class(tensors: dict[str, Tensor], shape: torch.Size) -> tuple[int, ...]:
    """`shape` with -1 for each dimension that no tensor of the cell determines.

    A tensor that does not broadcast to `shape` is a matrix, or part of one, and determines the last
    dimension. So may a tensor of two dimensions on a single neuron: the matrix of its synapse.
    """
    fixed = [-1] * len(shape)
    for tensor in tensors.values():
        fits = broadcasts(tensor.shape, shape)
        if not fits or (shape[-1] == 1 and tensor.ndim > 1):
            fixed[-1:] = shape[-1:]
        if not fits:
            continue
        for dimension, size in zip(range(len(shape) - 1, -1, -1), reversed(tensor.shape), strict=False):
            if size > 1:
                fixed[dimension] = shape[dimension]
    return tuple(fixed)


def broadcasts(tensor_shape: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of the shape `tensor_shape` broadcasts to `shape`."""
    return len(tensor_shape) <= len(shape) and all(
        size in (1, target_size)
        for size, target_size in zip(reversed(tensor_shape), reversed(shape), strict=False)
    )
