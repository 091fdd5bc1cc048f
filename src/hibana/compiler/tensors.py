"""The tensors that a cell holds, and how they broadcast to the shape of a step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hibana.cells import Cell

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def evaluate_parametrizations(module: ModuleT) -> ModuleT:
    """`module`, or a copy that holds the tensors that parametrisations compute, once for a whole call.

    The copy shares all other parameters and buffers; attributes that a step sets on it are lost. Dynamo can
    copy no module, and has :func:`cached_parametrizations`.
    """
    if module._modules and is_parametrized(module) and not torch.compiler.is_dynamo_compiling():
        copied: ModuleT = _with_computed(module, {})
        return copied
    return module


def cached_parametrizations() -> AbstractContextManager[Any]:
    """A context within which each parametrised tensor is computed once, while torch.compile traces.

    Outside of a trace it does nothing: ``torch.nn.utils.parametrize.cached`` would change other threads too.
    """
    if torch.compiler.is_dynamo_compiling():
        return parametrize.cached()  # of all threads: not for calls
    return nullcontext()


def is_parametrized(module: nn.Module) -> bool:
    """Whether parametrisations compute tensors of `module`, or of a module in it."""
    inner = module._modules
    if isinstance(inner.get("parametrizations"), nn.ModuleDict):
        return True
    return any(each is not None and each._modules and is_parametrized(each) for each in inner.values())


def _with_computed(module: nn.Module, known: dict[nn.Module, Any]) -> Any:
    if module in known:
        return known[module]
    parametrisations = module._modules.get("parametrizations")
    computed = dict(parametrisations.items()) if isinstance(parametrisations, nn.ModuleDict) else {}
    kind: Any = parametrize.type_before_parametrizations(module)
    copied = known[module] = kind.__new__(kind)
    own = {name: value for name, value in vars(module).items() if name != "made"}
    for place in ("_parameters", "_buffers"):
        held = {name: getattr(module, name) for name, each in computed.items() if getattr(each, place)}
        own[place] = getattr(module, place) | held
    own["_modules"] = {
        name: None if inner is None else _with_computed(inner, known)
        for name, inner in module._modules.items()
        if not (computed and name == "parametrizations")
    }
    vars(copied).update(own)
    return copied


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """The parameters of `cell`, then its buffers, by name; a tensor with two names twice."""
    if not (cell._parameters or cell._buffers or cell._modules):
        return {}
    modules = list(cell.named_modules()) if cell._modules else [("", cell)]
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for held in ("_parameters", "_buffers")
        for prefix, module in modules
        for name, tensor in getattr(module, held).items()
        if tensor is not None
    }


def fitting_shape(cell: Cell) -> tuple[int, ...]:
    """A shape of inputs that the tensors of `cell` can be broadcast with; ``(8,)`` if it has none."""
    sizes = [tensor.shape for tensor in tensors_of(cell).values() if tensor.numel() > 1]
    if not sizes:
        return (8,)
    try:
        return tuple(torch.broadcast_shapes(*sizes))  # type: ignore[no-untyped-call] # torch leaves it so
    except RuntimeError:  # matrices, or parts of them: of as many neurons as their longest side
        return (max(size for shape in sizes for size in shape),)


def shape_class(tensors: dict[str, Tensor], shape: torch.Size) -> tuple[int, ...]:
    """`shape` with -1 for each dimension that no tensor of the cell determines.

    A tensor that does not broadcast to a step is a matrix, or part of one, and fixes the neurons' dimension.
    """
    fixed = [-1] * len(shape)
    for tensor in tensors.values():
        if not _broadcasts(tensor.shape, shape):
            fixed[-1:] = shape[-1:]
            continue
        for dimension, size in zip(range(len(shape) - 1, -1, -1), reversed(tensor.shape), strict=False):
            if size > 1:
                fixed[dimension] = shape[dimension]
    return tuple(fixed)


def _broadcasts(one: torch.Size, shape: torch.Size) -> bool:
    return len(one) <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(one), reversed(shape), strict=False)
    )
