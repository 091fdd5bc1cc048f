"""The :class:`Step` and its values: the data structure that all passes work on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hibana.compiler.graph.ops import BOOLEAN

__all__ = ["Step", "Value"]


@dataclass(frozen=True, eq=False)
class Value:
    """One number (or truth value) per neuron and step.

    `op` is a leaf (``input``, ``previous``, ``gradient``, ``parameter``, ``constant``, ``number``), one of
    ``ops.OPERATIONS``, or ``product``; `data` is a leaf's index, or a ``number`` itself. The product of a row
    of neurons with matrix j has `data` ``2 j``, with it transposed ``2 j + 1``. The passes (``graph.passes``)
    have leaves of their own: ``row``, ``bits`` and ``scalar``, by name.
    """

    op: str
    args: tuple["Value", ...] = ()
    data: int | str = 0
    scalar: bool = False
    """A parameter that is one number for all neurons."""

    @property
    def boolean(self) -> bool:
        """A truth value rather than a number."""
        return self.op in BOOLEAN

    def is_number(self, number: int) -> bool:
        """Whether it is this whole number, wherever it is read."""
        return self.op == "number" and self.data == number


@dataclass(frozen=True)
class Step:
    """One step of a cell: what it computes, and the gradients of its inputs.

    ``gradient`` leaf i is the gradient of the loss with respect to state i after the step.
    """

    states: tuple[str, ...]
    nexts: tuple[Value, ...]
    grad_input: Value | None
    grad_states: tuple[Value | None, ...]
    grad_sums: tuple[Value, ...]
    """Per neuron, to be summed over time for the :attr:`epilogue`."""
    constants: tuple[float, ...]
    prologue: Callable[..., tuple[Any, ...]]
    """From the cell's tensors to the ``parameter`` leaves, then the matrices."""
    epilogue: Callable[..., tuple[Tensor | None, ...]]
    """From the cell's tensors, the sums of :attr:`grad_sums` and those of :attr:`outer` to the gradients of
    the tensors."""
    parameters: int
    matrices: int = 0
    outer: tuple[tuple[Value, Value], ...] = ()
    """Pairs of rows whose outer products, summed over samples and time, are gradients of matrices."""
    blank: bool = False
    """Whether some gradient is the number zero, as that of ``floor``, and no longer names what it is of."""
    any_size: bool = False
    """Whether the step is the same for every size of a dimension that no tensor of the cell has."""

    @property
    def sides(self) -> list[Value]:
        """Both of each pair of :attr:`outer`."""
        return [side for pair in self.outer for side in pair]
