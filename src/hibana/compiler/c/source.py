"""The forward of a step as statements of C, in stages: operands of a matrix product before its users.

A stage is the body of a loop over neurons. Only operands and results of matrix products are stored between
stages; a later stage computes other values again, with the same bits.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

from hibana.compiler.analysis.binary import Integers, States
from hibana.compiler.analysis.text import Dialect, statements, templates
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.step import Step, Value


def dialect(real: str) -> Dialect:
    """How C says each operation on numbers of `real`, ``"float"`` or ``"double"``."""
    suffix = "f" if real == "float" else ""
    said = {n: c.replace("REAL", real).replace("@", suffix) for n, c in templates("c").items()}
    return Dialect(
        "C", said, f"{{0}}.0{suffix}", f"const {real} {{name}} = {{text}};", "const int {name} = {text};"
    )


def literal(number: float, real: str) -> str:
    """`number` in C, to the last bit of `real`."""
    if math.isnan(number):
        return "NAN"
    suffix = "f" if real == "float" else ""
    if real == "float":
        number = ctypes.c_float(number).value
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    text = f"{number:.9g}" if real == "float" else repr(number)
    if not any(mark in text for mark in ".e"):
        text += ".0"
    return f"({text}{suffix})" if text[0] == "-" else f"{text}{suffix}"


@dataclass(frozen=True)
class Product:
    """A product of a row of neurons with a matrix of the cell's."""

    matrix: int
    transposed: bool
    operand: Value
    """In terms of leaves and earlier products."""
    state: int | None
    """If the operand is a previous state, which one."""
    is_binary: bool
    """Whether the operand is zeros and ones."""


def split_products(step: Step, binary: States) -> tuple[list[Product], Stores]:
    """The products of a step in order, and its next states; product i is then the leaf ``product{i}``."""
    stores = forward_pass(step, None)
    found = [value for value in reachable(stores.values()) if value.is_product]
    read = {value: Value("row", data=f"product{i}") for i, value in enumerate(found)}
    states = {name: i for i, name in enumerate(step.states)} | {"emitted_before": len(step.states) - 1}
    integers = Integers(step, states, binary)
    products = []
    for value in found:
        (argument,) = value.args
        operand = substitute({"operand": argument}, read)["operand"]
        state = states.get(str(argument.data)) if argument.is_row else None
        products.append(Product(*value.matrix, operand, state, integers.is_binary(argument)))
    return products, substitute(stores, read)


def neuron_statements(
    stores: Stores, standing: Callable[[str, Value], str], spoken: Dialect
) -> tuple[list[str], dict[str, str]]:
    """The body of a loop over neurons, as :func:`statements`; `standing` gives the expression of a leaf."""
    read = leaves(stores)
    return statements(stores, {name: standing(name, leaf) for name, leaf in read.items()}, spoken)


def library_functions(stores: Stores) -> set[str]:
    """The operations in `stores` whose last bits depend on the C library: all but the square root."""
    rows = (value.operation for value in reachable(stores.values()) if value.is_call)
    return {row.name for row in rows if row is not None and row.c and row.libm != "sqrt"}


def operation_count(stores: Stores) -> int:
    """The operations of `stores` per neuron and step; conversions and negations of truth values are free."""
    rows = [value.operation for value in reachable(stores.values())]
    return sum(row is not None and not (row.takes_booleans and row.arity == 1) for row in rows)
