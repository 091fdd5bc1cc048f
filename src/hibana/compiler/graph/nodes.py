"""Properties of the nodes of a traced graph: operation, matrix, memory that is written, and layout.

The *layout* of a traced tensor contains the index in the step of the neuron that each element belongs to. An
operation that only moves elements, such as a view or a transposition, is applied to the layout too. So the
layout of an operand of a matrix product shows which of its dimensions are neurons.
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
    """The name of an ATen operation without its overload, such as ``add_``; ``""`` for other functions."""
    return str(getattr(target, "_opname", ""))


def as_computed(node: fx.Node, dtype: torch.dtype, device: str) -> tuple[Any, tuple[Any, ...]]:
    """The operation of `node` and its arguments as PyTorch computes them for `dtype` and `device`.

    The defaults of ``nan_to_num`` depend on the dtype. On CUDA, a quotient by a number is a product with its
    reciprocal (BinaryDivTrueKernel.cu).
    """
    if name_of(node.target) == "nan_to_num":
        x, *replacements = (*node.args, None, None, None)
        defaults = (0.0, torch.finfo(dtype).max, torch.finfo(dtype).min)
        pairs = zip(defaults, replacements, strict=False)
        return node.target, (x, *(default if number is None else number for default, number in pairs))
    if device != "cuda" or node.target not in _QUOTIENTS or isinstance(node.args[1], fx.Node):
        return node.target, node.args
    dividend, divisor = node.args
    reciprocal = float(1 / torch.tensor(divisor, dtype=dtype, device="cpu"))
    return torch.ops.aten.mul.Tensor, (dividend, reciprocal)


def writes(node: fx.Node) -> bool:
    """Whether `node` is an in-place operation."""
    target = node.target
    return isinstance(target, torch_internals.OpOverload) and target._schema.name.endswith("_")


def has_out_argument(node: fx.Node) -> bool:
    """Whether `node` is an operation that writes to a tensor argument ``out``."""
    target = node.target
    return isinstance(target, torch_internals.OpOverload) and target._schema.is_mutable and not writes(node)


def sharing_memory(node: fx.Node) -> list[fx.Node]:
    """All nodes before the in-place operation `node` whose tensors share the memory that it writes.

    Raises Unsupported if an argument of the step, or a tensor from outside it, shares that memory.
    """
    memory = _memory_of(node.all_input_nodes[0])
    sharing = []
    for other in node.graph.nodes:
        if other is node:
            break
        if _memory_of(other) == memory:
            if other.op == "placeholder" or other.target is foreign:
                raise Unsupported(f"{node.target} writes into an argument of the step")
            sharing.append(other)
    return sharing


def _memory_of(node: fx.Node) -> int:
    """The address of the storage of the tensor of `node`."""
    return torch_internals.storage_key(node.meta["val"])


class Matrices:
    """The matrices of a step of `shape`: computed from the cell's tensors alone, ``[neurons, neurons]``."""

    def __init__(self, shape: torch.Size, once: set[fx.Node]) -> None:
        self.shape = shape
        """The shape of one step of the input."""
        self.once = once
        """Nodes that depend on the cell's tensors alone."""
        self.nodes: list[fx.Node] = []
        """The matrices; for a sparse matrix, the weights of its synapses."""
        self.sparse: dict[int, tuple[fx.Node, fx.Node]] = {}
        """The row starts and targets of each sparse matrix, by its index."""

    def place(self, node: fx.Node) -> tuple[int, bool]:
        """The index of the matrix of `node`, which is added if it is new, and whether it is transposed."""
        transposed = False
        while name_of(node.target) in ("t", "transpose", "mT", "view", "_unsafe_view") and self._is_matrix(
            node.args[0]
        ):
            transposed ^= name_of(node.target) in ("t", "transpose", "mT")
            (node,) = node.all_input_nodes
        if node not in self.nodes:
            self.nodes.append(node)
        return self.nodes.index(node), transposed

    def place_sparse(self, *tensors: fx.Node) -> int:
        """The index of the sparse matrix with these weights, row starts and targets; it is added if new.

        Raises:
            Unsupported: if a tensor depends on the neurons.
        """
        if not self.once.issuperset(tensors):
            raise Unsupported("the synapses of a sparse matrix depend on the state")
        weights, *index = [_without_aliases(node) for node in tensors]
        for i, placed in self.sparse.items():
            if (self.nodes[i], *placed) == (weights, *index):
                return i
        self.nodes.append(weights)
        self.sparse[len(self.nodes) - 1] = index[0], index[1]
        return len(self.nodes) - 1

    def _is_matrix(self, node: Any) -> bool:
        """Whether `node` is a square matrix that depends on the cell's tensors alone."""
        neurons = self.shape[-1]
        return node in self.once and node.meta["val"].squeeze(0).shape == (neurons, neurons)


def _without_aliases(node: fx.Node) -> fx.Node:
    """The node whose tensor `node` is an alias of."""
    while name_of(node.target) == "alias":
        (node,) = node.all_input_nodes
    return node


MOVES = frozenset(
    {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"}
    | {"alias", "detach", "clone", "contiguous", "expand", "lift_fresh", "numpy_T", "mT", "squeeze_"}
)
"""Operations whose result has each element of their first argument once."""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "mv", "addmv"})


def step_layout(shape: torch.Size) -> Tensor:
    """The layout of a tensor with the neurons of a step of `shape` in their order."""
    return torch.arange(shape.numel(), dtype=torch.int64, device="cpu").view(shape)


def moved(layout: Tensor, operation: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """The layout after an `operation` with further arguments `args` that moves the elements of `layout`."""
    result = operation(layout.clone(), *args, **{k: v for k, v in kwargs.items() if k == "implicit"})
    assert isinstance(result, Tensor)
    return result.clone()


def same(layout: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Whether `layout` and `other` are equal and have `shape`."""
    return layout.shape == shape and (layout is other or torch.equal(layout, other))


def is_step(layout: Tensor, shape: torch.Size) -> bool:
    """Whether `layout` has the neurons of a step of `shape` in their order, perhaps with fewer dimensions."""
    return layout.numel() == shape.numel() and _in_order(layout)


def rows(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` has the neurons of a step as ``[samples, neurons]`` or ``[1, samples, neurons]``."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and plain.shape[1] == neurons and _in_order(plain)


def columns(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` has the neurons of a step as ``[neurons, samples]`` or ``[1, neurons, samples]``."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and rows(plain.T, neurons)


def _in_order(layout: Tensor) -> bool:
    """Whether `layout`, the index of the neuron at each place, lists all neurons in their order."""
    return torch.equal(layout.reshape(-1), step_layout(torch.Size([layout.numel()])))
