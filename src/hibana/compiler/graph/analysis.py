"""Evaluation of a step's values in any domain, and the order in which values are evaluated.

The analyses themselves are in :mod:`hibana.compiler.analysis`, the code generators in each backend's folder.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Value

T = TypeVar("T")


class Analysis(Generic[T]):
    """Evaluates values in another domain: intervals, tensors, expressions of a language.

    A subclass defines `operation`, and `leaf` or methods for single kinds of leaves: the leaf ``input`` is
    evaluated by the method ``on_input`` if there is one.
    """

    def __init__(self, results: Mapping[Value, T] | None = None) -> None:
        self.results: dict[Value, T] = dict(results or {})
        """The values that are evaluated."""

    def run(self, values: Iterable[Value]) -> list[T]:
        """Evaluates `values` and everything that they depend on, each once; arguments first."""
        values = list(values)
        for value in evaluation_order(values, self.results):
            self.results[value] = self.evaluate(value, [self.results[a] for a in value.args])
        return [self.results[value] for value in values]

    def of(self, value: Value) -> T:
        """The result of `value`."""
        return self.run([value])[0]

    def evaluate(self, value: Value, args: list[T]) -> T:
        """The result of `value`, given those of its arguments."""
        if value.operation is not None:
            return self.operation(value, value.operation, args)
        if value.is_product:
            return self.product(value, args)
        handler = getattr(self, f"on_{value.op}", self.leaf)
        result: T = handler(value)
        return result

    def leaf(self, value: Value) -> T:
        """The result of a leaf."""
        raise Unsupported(f"a leaf {value.op!r} in {type(self).__name__}")

    def operation(self, value: Value, row: Operation, args: list[T]) -> T:
        """The result of an operation of the table."""
        raise NotImplementedError

    def product(self, value: Value, args: list[T]) -> T:
        """The result of a product with a matrix of the step."""
        raise Unsupported("a product with a matrix")


class Rewriting(Analysis[Value]):
    """Replaces values by others: the domain is values themselves. By default nothing changes."""

    def leaf(self, value: Value) -> Value:
        return value

    def operation(self, value: Value, row: Operation, args: list[Value]) -> Value:
        return self.product(value, args)

    def product(self, value: Value, args: list[Value]) -> Value:
        return value if tuple(args) == value.args else replace(value, args=tuple(args))

    def rewrite(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """`named` with each value rewritten."""
        return dict(zip(named, self.run(named.values()), strict=True))


def substitute(named: Mapping[str, Value], replacements: Mapping[Value, Value]) -> dict[str, Value]:
    """`named` with each key of `replacements` in them replaced by its value."""
    return Rewriting(replacements).rewrite(named)


def evaluation_order(roots: Iterable[Value], known: Container[Value]) -> list[Value]:
    """The values to evaluate or read for `roots` if `known` are available; each after its arguments."""
    order: dict[Value, None] = {}
    for root in roots:
        waiting = [root]
        while waiting:
            value = waiting[-1]
            if value in order or value in known:
                waiting.pop()
                continue
            missing = [a for a in value.args if a not in order and a not in known]
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
    """`sources` and those of `values` that depend on them, in order; `values` come after their arguments."""
    found = dict.fromkeys(sources)
    for value in values:
        if any(argument in found for argument in value.args):
            found[value] = None
    return found


def users_of(values: Iterable[Value]) -> dict[Value, list[Value]]:
    """For each argument of `values`, the values that use it."""
    users: dict[Value, list[Value]] = {}
    for value in values:
        for argument in value.args:
            users.setdefault(argument, []).append(value)
    return users
