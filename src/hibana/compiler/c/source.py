"""The forward of a step as statements of C, in stages: operands of a matrix product before its users.

A stage is the body of a loop over neurons. Only operands and results of matrix products are stored between
stages; a later stage computes other values again, with the same bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hibana.compiler.graph.emit import Dialect, statements
from hibana.compiler.graph.ops import CALLS, OPERATIONS
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.plan import evaluated
from hibana.compiler.graph.step import Step, Value

Truths = frozenset[int]
"""The states that are zeros and ones, by number."""


def dialect(real: str) -> Dialect:
    """How C says each operation on numbers of `real`, ``"float"`` or ``"double"``."""
    suffix = "f" if real == "float" else ""
    said = {n: row.c.replace("REAL", real).replace("@", suffix) for n, row in OPERATIONS.items() if row.c}
    return Dialect(
        "C", said, f"{{0}}.0{suffix}", f"const {real} {{name}} = {{said}};", "const int {name} = {said};"
    )


def literal(number: float, real: str) -> str:
    """`number` in C, to the last bit of `real`."""
    if math.isnan(number):
        return "NAN"
    suffix = "f" if real == "float" else ""
    if real == "float":
        number = float(torch.tensor(number, dtype=torch.float32, device="cpu"))
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
    turned: bool
    operand: Value
    """In terms of leaves and earlier products."""
    state: int | None
    """If the operand is a previous state, which one."""
    truth: bool
    """Whether the operand is zeros and ones."""


def staged(step: Step, known: Truths) -> tuple[list[Product], Stores]:
    """The products of a step in order, and its next states; product i is then the leaf ``product{i}``."""
    stores = forward_pass(step, None)
    found = [value for value in evaluated(stores.values(), ()) if value.op == "product"]
    read = {value: Value("row", data=f"product{i}") for i, value in enumerate(found)}
    names = {name: i for i, name in enumerate(step.states)} | {"emitted_before": len(step.states) - 1}
    products = []
    for value in found:
        index, turned = divmod(int(value.data), 2)
        (argument,) = value.args
        operand = substitute({"operand": argument}, read)["operand"]
        state = names.get(str(argument.data)) if argument.op == "row" else None
        truth = state in known if state is not None else is_truth(argument, known, names)
        products.append(Product(index, bool(turned), operand, state, truth))
    return products, substitute(stores, read)


def truths(step: Step, begun: Truths) -> Truths:
    """The states that are zeros and ones after every step, if those of `begun` are initially."""
    names = {f"{i}": i for i in range(len(step.states))}
    known = begun
    while True:
        kept = frozenset(i for i in known if is_truth(step.nexts[i], known, names))
        if kept == known:
            return known
        known = kept


def is_truth(value: Value, known: Truths, names: Mapping[str, int]) -> bool:
    """Whether `value` is zeros and ones if the states `known` are."""
    if value.boolean or value.op == "to_float":
        return True
    if value.op == "number":
        return value.data in (0, 1)
    if value.op in ("previous", "row"):
        return names.get(str(value.data)) in known
    rest = value.args[1:] if value.op == "where" else value.args
    if (value.op == "sub" and value.args[0].is_number(1)) or value.op in (
        "mul",
        "where",
        "maximum",
        "minimum",
    ):
        return all(is_truth(argument, known, names) for argument in rest)
    return False


def neuron_statements(
    stores: Stores, standing: Callable[[str, Value], str], spoken: Dialect
) -> tuple[list[str], dict[str, str]]:
    """The body of a loop over neurons, as :func:`statements`; `standing` gives the expression of a leaf."""
    read = leaves(stores)
    return statements(stores, {name: standing(name, leaf) for name, leaf in read.items()}, spoken)


def functions(stores: Stores) -> set[str]:
    """The operations in `stores` whose last bits depend on the C library."""
    used = {value.op for value in evaluated(stores.values(), ())}
    return {op for op in used & CALLS if op != "sqrt" and OPERATIONS[op].c}


def operations(stores: Stores) -> int:
    """The operations of `stores` per neuron and step: arithmetic, comparisons, selects, functions."""
    free = ("to_float", "to_bool", "not", "number")
    return sum(bool(v.args) and v.op not in free for v in evaluated(stores.values(), ()))
