"""Evaluates values of a step in PyTorch, one operation at a time."""

import torch
from torch import Tensor

from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.ops import Operation
from hibana.compiler.graph.step import Value


class Eager(Analysis[Tensor]):
    """Tensors of values, with numbers in `dtype`; a subclass defines the tensors of leaves."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def operation(self, value: Value, row: Operation, args: list[Tensor]) -> Tensor:
        """The result of PyTorch's function for the operation `row`."""
        result = row.function(*args)
        return result if row.boolean else result.to(self.dtype)
