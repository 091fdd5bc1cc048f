"""The forward pass of a step for programs in C, in stages that matrix products separate.

A stage is the body of a loop over neurons. Only operands and results of matrix products are stored between
stages; a later stage computes all other values again, with the same bits.
"""

import ctypes
import math
from dataclasses import dataclass

from hibana.compiler.analysis.binary import Integers, States
from hibana.compiler.graph.analysis import Rewriting, reachable
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.passes import Stores, forward_pass
from hibana.compiler.graph.step import Step, Value


def literal(number: float, kind: str) -> str:
    """`number` as a literal of C with the exact value in C's type `kind`, of integers or of real numbers."""
    if kind not in ("float", "double"):
        return str(int(number))
    if math.isnan(number):
        return "NAN"
    suffix = "f" if kind == "float" else ""
    if kind == "float":
        number = ctypes.c_float(number).value
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    text = f"{number:.9g}" if kind == "float" else repr(number)
    if not any(mark in text for mark in ".e"):
        text += ".0"
    return f"({text}{suffix})" if text[0] == "-" else f"{text}{suffix}"


@dataclass(frozen=True)
class Product:
    """A product of a vector, with one number per neuron, and a matrix of the cell."""

    matrix: int
    """The index of the matrix."""
    transposed: bool
    operand: Value
    """The vector, as a function of leaves and earlier products."""
    is_binary: bool
    """Whether the vector's numbers are always 0 or 1."""


def split_products(step: Step, binary: States) -> tuple[list[Product], Stores]:
    """The products of `step` in order, and its next states, which read product i as the leaf ``product`` i.

    The states `binary` are 0 or 1 at every step.
    """
    stores = forward_pass(step, None)
    values = [value for value in reachable(stores.values()) if value.is_product]
    results = {value: Value("row", leaf=Leaf("product", i)) for i, value in enumerate(values)}
    integers, rewriting, products = Integers(step, binary), Rewriting(results), []
    for value in values:
        (argument,) = value.args
        products.append(Product(*value.matrix, rewriting.of(argument), integers.is_binary(argument)))
    return products, rewriting.rewrite(stores)


def library_functions(stores: Stores) -> set[str]:
    """The operations in `stores` whose results depend on the C library: functions except square roots."""
    rows = (value.operation for value in reachable(stores.values()) if value.is_call)
    return {row.name for row in rows if row is not None and row.libm != "sqrt"}


def operation_count(stores: Stores) -> int:
    """The number of operations per neuron and step; conversions and negations of booleans do not count."""
    rows = [value.operation for value in reachable(stores.values())]
    return sum(row is not None and not (row.takes_booleans and row.arity == 1) for row in rows)
