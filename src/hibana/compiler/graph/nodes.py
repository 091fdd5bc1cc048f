"""Reads a node of a traced graph: its operation, its dtype, which matrix it is, where it writes, its layout.

A step's matrix products come among views and transpositions. The *layout* of a traced tensor holds for each
of its elements the number of its neuron in the step. An operation that only moves elements is applied to the
layout too, so that it is known which dimension of an operand holds the neurons.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.recorder import foreign
from hibana.runtime import torch_internals

_QUOTIENTS = (torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor)


def name_of(target: Any) -> str:
    """An ATen operation's name, whatever its overload."""
    return str(getattr(target, "_opname", ""))


def as_computed(node: fx.Node, dtype: torch.dtype, device: str) -> tuple[Any, tuple[Any, ...]]:
    """The operation of `node` and its arguments, with what PyTorch fills in for the `dtype` or the `device`.

    On CUDA, a quotient by a number is a product with its reciprocal (BinaryDivTrueKernel.cu).
    """
    if name_of(node.target) == "nan_to_num":
        x, *given = (*node.args, None, None, None)
        numbers = torch.finfo(dtype)
        usual = (0.0, numbers.max, numbers.min)
        return node.target, (x, *(u if g is None else g for u, g in zip(usual, given, strict=False)))
    if device != "cuda" or node.target not in _QUOTIENTS or isinstance(node.args[1], fx.Node):
        return node.target, node.args
    dividend, divisor = node.args
    reciprocal = float(1 / torch.tensor(divisor, dtype=dtype, device="cpu"))
    return torch.ops.aten.mul.Tensor, (dividend, reciprocal)


def writes(node: fx.Node) -> bool:
    """Whether `node` is an operation in place."""
    target = node.target
    return isinstance(target, torch_internals.OpOverload) and target._schema.name.endswith("_")


def writes_to_given(node: fx.Node) -> bool:
    """Whether `node` is an operation that writes to a tensor which it was given for it (``out=``)."""
    target = node.target
    return isinstance(target, torch_internals.OpOverload) and target._schema.is_mutable and not writes(node)


def sharing_memory(node: fx.Node) -> list[fx.Node]:
    """All nodes before `node` that share the memory that it writes into.

    Raises:
        Unsupported: if an argument of the step does.
    """
    memory = _memory_of(node.all_input_nodes[0])
    found = []
    for other in node.graph.nodes:
        if other is node:
            break
        if _memory_of(other) == memory:
            if other.op == "placeholder" or other.target is foreign:
                raise Unsupported(f"{node.target} writes into an argument of the step")
            found.append(other)
    return found


def _memory_of(node: fx.Node) -> int:
    return int(node.meta["val"].untyped_storage()._cdata)


class Matrices:
    """Square matrices of as many neurons as a step of `shape` has, made of the cell's tensors alone."""

    def __init__(self, shape: torch.Size, once: set[fx.Node]) -> None:
        self.shape = shape
        self.once = once
        """Nodes that depend on the cell's tensors alone."""
        self.nodes: list[fx.Node] = []

    def place(self, node: fx.Node) -> tuple[int, bool]:
        """Which of the matrices `node` is, and whether transposed."""
        turned = False
        while name_of(node.target) in ("t", "transpose", "mT", "view", "_unsafe_view") and self._is_matrix(
            node.args[0]
        ):
            turned ^= name_of(node.target) in ("t", "transpose", "mT")
            (node,) = node.all_input_nodes
        if node not in self.nodes:
            self.nodes.append(node)
        return self.nodes.index(node), turned

    def _is_matrix(self, node: Any) -> bool:
        """Whether `node` is a square matrix that depends on the cell's tensors alone."""
        neurons = self.shape[-1]
        return node in self.once and node.meta["val"].squeeze(0).shape == (neurons, neurons)


MOVES = frozenset(
    {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"}
    | {"alias", "detach", "clone", "contiguous", "expand", "lift_fresh", "numpy_T", "mT", "squeeze_"}
)
"""Operations whose result holds the elements of their first argument, each once."""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "mv", "addmv"})


def step_layout(shape: torch.Size) -> Tensor:
    """The layout of a step of `shape`."""
    return torch.arange(shape.numel(), dtype=torch.int64, device="cpu").view(shape)


def moved(layout: Tensor, operation: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """`layout` after `operation`, with its `args` after the tensor."""
    result = operation(layout.clone(), *args, **{k: v for k, v in kwargs.items() if k == "implicit"})
    assert isinstance(result, Tensor)
    return result.clone()


def same(layout: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Whether both are one layout, of `shape`."""
    return layout.shape == shape and (layout is other or torch.equal(layout, other))


def is_step(layout: Tensor, shape: torch.Size) -> bool:
    """Whether `layout` is that of a step of `shape`, its dimensions before the last perhaps joined."""
    return layout.numel() == shape.numel() and _in_order(layout)


def rows(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` holds the places of a step as ``[samples, neurons]`` or ``[1, samples, neurons]``."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and plain.shape[1] == neurons and _in_order(plain)


def columns(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` holds the places of a step as ``[neurons, samples]`` or ``[1, neurons, samples]``."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and rows(plain.T, neurons)


def _in_order(layout: Tensor) -> bool:
    return torch.equal(layout.reshape(-1), step_layout(torch.Size([layout.numel()])))
