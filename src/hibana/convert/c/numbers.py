"""What a program computes with: the types of its numbers, how they are written, and how a step is said."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from hibana.convert.c.memory import SIZES
from hibana.loop.c import source
from hibana.loop.graph.ops import Unsupported
from hibana.loop.graph.passes import Stores
from hibana.loop.graph.step import Value

if TYPE_CHECKING:
    from hibana.convert.c.neurons import Layer

__all__ = ["Floating", "Numbers"]

Standing = Callable[[str, Value], str]


class Numbers(ABC):
    """A kind of numbers."""

    kind: str
    """What sums and states are."""
    weight: str
    """What weights are."""
    input: str
    """What is given at each step."""
    lowest: str
    """Less than any number."""
    guards: tuple[str, ...]
    """What has to hold where the program is compiled, in the preprocessor's words."""

    @abstractmethod
    def statements(
        self, made: "Layer", stores: Stores, standing: Standing
    ) -> tuple[list[str], dict[str, str]]:
        """The body of a loop over neurons that computes `stores`, and what stands for each.

        Raises:
            Unsupported: naming the layer, if an operation can't be said.
        """

    @abstractmethod
    def check(self, name: str, values: Tensor) -> None:
        """Refuses the weights of the layer `name` if they are no such numbers."""

    def bytes(self, kind: str) -> int:
        """Of a number of a type."""
        return SIZES[kind]

    def literal(self, number: float, kind: str) -> str:
        """A number as a literal of a type."""
        return source.literal(number, kind) if kind in ("float", "double") else str(int(number))


@final
class Floating(Numbers):
    """Numbers of IEEE 754, in the order of operations in which the step is written."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"numbers of {dtype} are nothing that C has; use float32 or float64")
        self.kind = self.weight = self.input = "float" if dtype == torch.float32 else "double"
        self.lowest = "(-INFINITY)"
        self.guards = _GUARDS

    def statements(
        self, made: "Layer", stores: Stores, standing: Standing
    ) -> tuple[list[str], dict[str, str]]:
        try:
            return source.neuron_statements(stores, standing, source.dialect(self.kind))
        except Unsupported as refused:
            raise Unsupported(f"layer {made.node.name!r}: {refused}") from refused

    def check(self, name: str, values: Tensor) -> None:
        if not bool(values.isfinite().all()):
            raise ValueError(f"layer {name!r}: its weights must be finite, and some are not")


_GUARDS = (
    "#include <float.h>",
    "#include <math.h>",
    "",
    "/* A product and a sum rounded once would give other spikes than PyTorch's. */",
    "#if defined(__FAST_MATH__)",
    '#error "compile this file without -ffast-math"',
    "#endif",
    "#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16",
    '#error "numbers are computed in more precision than they have: on x86 compile with -msse2 -mfpmath=sse"',
    "#endif",
    "#if defined(__clang__) || !defined(__GNUC__)",
    "#pragma STDC FP_CONTRACT OFF",
    "#elif !defined(__STRICT_ANSI__)",
    '#pragma GCC optimize ("fp-contract=off")',
    "#endif",
)
