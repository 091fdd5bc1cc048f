"""The forward pass of a step in floating-point numbers, for the loop over neurons of a C program."""

from collections.abc import Callable, Mapping

from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.passes import Stores
from hibana.compiler.graph.step import Value as StepValue
from hibana.compiler.pointwise import POINTWISE
from hibana.runtime.kernels import INT, Code, Type, Value

__all__ = ["float_results"]

_COMPOSED: dict[str, Callable[[Value], Value]] = {
    "sigmoid": lambda x: 1 / ((-x).call("exp") + 1),
    "softplus": lambda x: x.call("exp").call("log1p"),
    "elu": lambda x: x.call("expm1"),
}
"""The functions that C's library has no name for."""


def float_results(
    code: Code, type_: Type, stores: Stores, leaves: Mapping[Leaf, Value | float]
) -> dict[Leaf, Value]:
    """Adds the operations that compute `stores` to `code`, and returns their results.

    Args:
        code: the loop over neurons.
        type_: of numbers.
        stores: the values to compute.
        leaves: the value of each leaf, or its number if all neurons share it.

    Raises:
        Unsupported: if an operation has no form in C.
    """
    names = {value: f"{leaf}_new" for leaf, value in stores.items() if value.args and not value.boolean}
    results = _Building(code, type_, leaves, names).run(stores.values())
    return dict(zip(stores, results, strict=True))


class _Building(Analysis[Value]):
    """Builds the operations of one loop body."""

    def __init__(
        self,
        code: Code,
        type_: Type,
        leaves: Mapping[Leaf, Value | float],
        names: Mapping[StepValue, str],
    ) -> None:
        super().__init__()
        self.code, self.type, self.leaves, self.names = code, type_, leaves, names

    def on_number(self, value: StepValue) -> Value:
        """A constant."""
        return self.code.constant(float(value.data), self.type)

    def leaf(self, value: StepValue) -> Value:
        """The value of a leaf, or the constant that stands for it."""
        leaf = self.leaves[value.leaf]
        return leaf if isinstance(leaf, Value) else self.code.constant(leaf, self.type)

    def operation(self, value: StepValue, row: Operation, args: list[Value]) -> Value:
        """The result of an operation, with a name if it is stored."""
        if row.name == "to_float":
            result = args[0].to(INT).real(self.type)
        elif row.libm:
            result = args[0].call(row.libm, *args[1:])
        else:
            function = POINTWISE.get(row.name) or _COMPOSED.get(row.name)
            if function is None:
                raise Unsupported(f"operation {row.name!r} has no C implementation")
            result = function(*args)
        return result.named(self.names[value]) if value in self.names else result
