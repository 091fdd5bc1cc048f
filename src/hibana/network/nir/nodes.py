"""What a NIR node is to hibana: its fields, the shape it makes, the layer that runs it.

Nodes are handled as a type name and fields, as a file holds them, so that a file is understood alike
under every version of the nir package. Shapes are those of one sample at one step, without time and batch.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["LINEAR", "NEURONS", "Node", "Scale", "Shape", "output_shape", "pair"]

Shape = tuple[int, ...]
LINEAR = ("Linear", "Affine")
NEURONS = ("IF", "LIF", "CubaLIF", "LI", "I")


@dataclass(frozen=True)
class Node:
    """One node: the name of its NIR class, the fields of that class, its metadata."""

    type: str
    fields: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


class Scale(nn.Module):
    """The input times `scale`, element by element: ``y = scale * x``. A NIR ``Scale`` node.

    Args:
        scale: a tensor that broadcasts against one step of input.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs`, ``[T, batch, ...]``, scaled."""
        return inputs * self.scale


def output_shape(node: Node, shape: Shape) -> Shape:
    """The shape of what `node` makes of one sample of `shape`.

    Raises:
        ValueError: if `node` does not take `shape`; the message does not name the node, the caller does.
    """
    fields = node.fields
    if node.type in LINEAR:
        weight: Shape = np.shape(fields["weight"])
        if len(weight) != 2:
            raise ValueError(f"weight must have 2 dimensions (outputs, inputs), got shape {weight}")
        if shape != (weight[1],):
            raise ValueError(f"takes {weight[1]} inputs in one dimension, but gets the shape {shape}")
        if node.type == "Affine" and np.shape(fields["bias"]) != weight[:1]:
            raise ValueError(f"bias must have the shape {weight[:1]}, got {np.shape(fields['bias'])}")
        return weight[:1]
    if node.type in ("Conv1d", "Conv2d"):
        return _convolved(node, shape)
    if node.type in ("SumPool2d", "AvgPool2d"):
        if len(shape) != 3:
            raise ValueError(f"takes (channels, height, width), but gets the shape {shape}")
        kernel, stride = pair(fields, "kernel_size", at_least=1), pair(fields, "stride", at_least=1)
        return shape[:1] + _slid(shape[1:], kernel, stride, pair(fields, "padding"), (1, 1))
    if node.type == "Flatten":
        start, end = (_dimension(fields[key], len(shape)) for key in ("start_dim", "end_dim"))
        if start > end:
            raise ValueError(f"start_dim must not lie behind end_dim, got {start} and {end}")
        return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    if node.type == "NIRGraph":
        for inner in fields["nodes"].values():
            output_shape(inner, shape)
        return tuple(int(n) for n in fields["nodes"]["output"].fields["shape"])
    if node.type in ("Input", "Output"):
        return shape
    if node.type not in (*NEURONS, "Scale", "Delay"):
        raise ValueError("hibana has no such node")
    own = np.shape(fields[{"Scale": "scale", "Delay": "delay"}.get(node.type, "r")])
    if math.prod(own) != 1 and own != shape:
        raise ValueError(f"has the shape {own}, but gets the shape {shape}")
    return shape


def pair(fields: dict[str, Any], name: str, *, at_least: int = 0, dimensions: int = 2) -> Shape:
    """The field `name`, a whole number for each of `dimensions`, or one for all."""
    value = np.asarray(fields[name])
    whole = np.issubdtype(value.dtype, np.number) and bool((value == np.floor(value)).all())
    if not whole or value.size not in (1, dimensions) or int(value.min()) < at_least:
        raise ValueError(
            f"{name} must be {dimensions} whole numbers, at least {at_least}, got {fields[name]!r}"
        )
    return tuple(int(x) for x in np.broadcast_to(value.reshape(-1), dimensions))


def _convolved(node: Node, shape: Shape) -> Shape:
    dimensions = int(node.type[4])
    weight: Shape = np.shape(node.fields["weight"])
    if len(weight) != dimensions + 2:
        raise ValueError(f"weight must have {dimensions + 2} dimensions, got shape {weight}")
    (groups,) = pair(node.fields, "groups", at_least=1, dimensions=1)
    if len(shape) != dimensions + 1 or shape[0] != weight[1] * groups:
        raise ValueError(
            f"takes {weight[1] * groups} channels in {dimensions} dimensions, but gets the shape {shape}"
        )
    if weight[0] % groups:
        raise ValueError(f"groups must divide the {weight[0]} output channels, got {groups}")
    if np.shape(node.fields["bias"]) != weight[:1]:
        raise ValueError(f"bias must have the shape {weight[:1]}, got {np.shape(node.fields['bias'])}")
    stride = pair(node.fields, "stride", at_least=1, dimensions=dimensions)
    dilation = pair(node.fields, "dilation", at_least=1, dimensions=dimensions)
    padding = node.fields["padding"]
    if not isinstance(padding, str):
        around = pair(node.fields, "padding", dimensions=dimensions)
    elif padding == "valid":
        around = (0,) * dimensions
    elif padding == "same":
        if any(step != 1 for step in stride):
            raise ValueError(f'padding "same" needs a stride of 1, got {stride}')
        return weight[:1] + shape[1:]
    else:
        raise ValueError(f'padding must be whole numbers, "same" or "valid", got {padding!r}')
    return weight[:1] + _slid(shape[1:], weight[2:], stride, around, dilation)


def _slid(shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Shape:
    """How many places a kernel takes along each dimension."""
    result = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    )
    if any(n < 1 for n in result):
        raise ValueError(f"a kernel of {kernel} does not fit the shape {shape} padded by {padding}")
    return result


def _dimension(value: Any, rank: int) -> int:
    number = int(value)
    if not -rank <= number < rank:
        raise ValueError(f"dimension {number} is not one of the {rank} of the input")
    return number % rank
