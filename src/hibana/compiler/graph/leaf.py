"""The names of what a pass reads and writes, as records. Printers write them as text by ``str``."""

from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal[
    "input",
    "output",
    "state",
    "residual",
    "parameter",
    "constant",
    "uniform",
    "normal",
    "sum",
    "outer",
    "gate",
    "product",
    "operand",
    "scratch",
    "initial",
    "is_first",
    "none",
]
_PREFIXES: dict[Kind, str] = {"parameter": "p", "constant": "c"}
"""By kind of a leaf, the beginning of its text, if that is not the kind."""


@dataclass(frozen=True, order=True)
class Leaf:
    """A number or a boolean of each neuron, or of all neurons, that a pass reads or writes.

    :mod:`hibana.compiler.graph.passes` lists what each kind stands for.
    """

    kind: Kind
    index: int = 0
    """Its number among the leaves of its kind."""
    offset: int = 0
    """Steps of time after the step that the pass runs first; negative for a step before it."""
    is_gradient: bool = False
    """Whether it is the gradient of the loss with respect to what the other fields describe."""
    name: str = field(default="", compare=False)
    """Its text without suffixes; empty for the kind and the index."""

    def __str__(self) -> str:
        name = self.name or f"{_PREFIXES.get(self.kind, self.kind)}{self.index}"
        steps, direction = abs(self.offset), "before" if self.offset < 0 else "after"
        place = f"_{direction}{steps if steps > 1 else ''}" if steps else ""
        return f"{name}{'_grad' * self.is_gradient}{place}"

    def at(self, offset: int) -> "Leaf":
        """The same leaf at another offset."""
        if offset == self.offset:
            return self
        return Leaf(self.kind, self.index, offset, self.is_gradient, self.name)

    @property
    def gradient(self) -> "Leaf":
        """The gradient with respect to this leaf."""
        return replace(self, is_gradient=True)


INPUT = Leaf("input", name="x")
OUTPUT = Leaf("output")
NO_LEAF = Leaf("none")
"""The leaf of a value that is no leaf of a pass."""
OPERAND = Leaf("operand", name="operand")
"""The vector that a matrix multiplies."""
