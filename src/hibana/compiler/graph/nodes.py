"""Reads a node of a traced graph: its operation, type promotion, and the memory it writes to."""

from typing import Any

import torch
from torch import fx

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.recorder import foreign

__all__ = ["as_computed", "name_of", "sharing_memory", "writes", "writes_to_given"]

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
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_")


def writes_to_given(node: fx.Node) -> bool:
    """Whether `node` is an operation that writes to a tensor which it was given for it (``out=``)."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable and not writes(node)


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
