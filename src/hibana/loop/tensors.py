"""The tensors that a cell holds, and what they have to do with the shape of a step."""

import torch
from torch import Tensor

from hibana.cells import Cell

__all__ = ["shape_class", "tensors_of"]


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """The parameters of `cell`, then its buffers, by name; one of two names twice."""
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


def shape_class(tensors: dict[str, Tensor], shape: torch.Size) -> tuple[int, ...]:
    """`shape` with -1 for each dimension that no tensor of the cell has a say in.

    A tensor that does not broadcast to a step is a matrix, or a part of one: the last dimension alone, that
    of the neurons, is its matter.
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
