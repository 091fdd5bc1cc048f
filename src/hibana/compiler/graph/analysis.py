"""Evaluates the values of a step in any domain, and orders values by their dependencies.

Concrete analyses are in :mod:`hibana.compiler.analysis`, code generators in the folder of each backend.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Value

T = TypeVar("T")


class Analysis(Generic[T]):
    """Evaluates values in another domain: intervals, tensors, expressions of a language.

    A subclass defines :meth:`operation`, and :meth:`leaf` or a method for each kind of leaf, such as
    ``on_input`` for the leaf ``input``.
    """

    def __init__(self, results: Mapping[Value, T] | None = None) -> None:
        self.results: dict[Value, T] = dict(results or {})
        """The results by value."""

    def run(self, values: Iterable[Value]) -> list[T]:
        """The results of `values`. Each value that they depend on is evaluated once, after its arguments."""
        values = list(values)
        for value in evaluation_order(values, self.results):
            self.results[value] = self.evaluate(value, [self.results[a] for a in value.args])
        return [self.results[value] for value in values]

    def of(self, value: Value) -> T:
        """The result of `value`."""
        return self.run([value])[0]

    def evaluate(self, value: Value, args: list[T]) -> T:
        """The result of `value`; `args` are the results of its arguments."""
        if value.operation is not None:
            return self.operation(value, value.operation, args)
        if value.is_product:
            return self.product(value, args)
        handler = getattr(self, f"on_{value.op}", self.leaf)
        result: T = handler(value)
        return result

    def leaf(self, value: Value) -> T:
        """The result of a leaf."""
        raise Unsupported(f"{type(self).__name__} does not support the leaf {value.op!r}")

    def operation(self, value: Value, row: Operation, args: list[T]) -> T:
        """The result of the operation `row` of the table, applied to `args`."""
        raise NotImplementedError

    def product(self, value: Value, args: list[T]) -> T:
        """The result of a product of `args` with a matrix of the step."""
        raise Unsupported("a product with a matrix")


class Rewriting(Analysis[Value]):
    """Replaces values: the results are values too. By default each value is its own result."""

    def leaf(self, value: Value) -> Value:
        """`value` itself."""
        return value

    def operation(self, value: Value, row: Operation, args: list[Value]) -> Value:
        """`value` with the rewritten arguments `args`."""
        return self.product(value, args)

    def product(self, value: Value, args: list[Value]) -> Value:
        """`value` with the rewritten arguments `args`; `value` itself if they are the same objects."""
        return value if tuple(args) == value.args else replace(value, args=tuple(args))

    def rewrite(self, stores: Mapping[Leaf, Value]) -> dict[Leaf, Value]:
        """`stores` with the result of each value."""
        return dict(zip(stores, self.run(stores.values()), strict=True))


def substitute(stores: Mapping[Leaf, Value], replacements: Mapping[Value, Value]) -> dict[Leaf, Value]:
    """`stores` with each key of `replacements` replaced by its value, also inside other values."""
    return Rewriting(replacements).rewrite(stores)


def evaluation_order(roots: Iterable[Value], available: Container[Value]) -> list[Value]:
    """The values to evaluate for `roots`, each after its arguments, if those in `available` have results."""
    order: dict[Value, None] = {}
    for root in roots:
        waiting = [root]
        while waiting:
            value = waiting[-1]
            if value in order or value in available:
                waiting.pop()
                continue
            missing = [a for a in value.args if a not in order and a not in available]
            if missing:
                waiting += reversed(missing)
            else:
                order[value] = None
                waiting.pop()
    return list(order)


def reachable(roots: Iterable[Value]) -> list[Value]:
    """`roots` and all values that they depend on, each after its arguments."""
    return evaluation_order(roots, ())


def dependents(values: Iterable[Value], sources: Iterable[Value]) -> dict[Value, None]:
    """An ordered set of `sources`, and of `values` that depend on them.

    In `values`, arguments must come before the values that use them.
    """
    dependent = dict.fromkeys(sources)
    for value in values:
        if any(argument in dependent for argument in value.args):
            dependent[value] = None
    return dependent


def users_of(values: Iterable[Value]) -> dict[Value, list[Value]]:
    """For each argument of `values`, the values that use it."""
    users: dict[Value, list[Value]] = {}
    for value in values:
        for argument in value.args:
            users.setdefault(argument, []).append(value)
    return users
