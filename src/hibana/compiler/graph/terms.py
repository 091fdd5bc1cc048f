"""Terms: values of a step as Python expressions, for the rules that translate ATen's operations.

``1 / (x * x)`` makes the operations of the table in the order of Python's evaluation.
"""

from collections.abc import Callable
from typing import Any

from hibana.compiler.graph.step import Value

Rule = Callable[..., Any]
"""A function from the arguments of an ATen operation, terms and other objects, to a term or a number."""


def _infix(op: str) -> tuple[Rule, Rule]:
    """Methods as ``__add__`` and ``__radd__``: `op` of a term and `other`, and of `other` and the term."""
    return lambda term, other: term.apply(op, term, other), lambda term, other: term.apply(op, other, term)


class Term:
    """A value of a step, with Python's operators."""

    def __init__(self, read: Callable[[Any], Value], make: Callable[..., Value], source: Any) -> None:
        """`source` is the value, or an argument from which `read` makes it on first use."""
        self._read, self._make, self._source = read, make, source

    @property
    def value(self) -> Value:
        """The value of the step that this term stands for."""
        return self._source if isinstance(self._source, Value) else self._read(self._source)

    def lift(self, other: Any) -> "Term":
        """`other`, a term or a number, as a term."""
        return other if isinstance(other, Term) else Term(self._read, self._make, self._read(other))

    def apply(self, op: str, *args: Any) -> "Term":
        """A term for the operation `op` of the table, applied to terms and numbers."""
        return Term(self._read, self._make, self._make(op, *[self.lift(a).value for a in args]))

    __add__, __radd__ = _infix("add")
    __sub__, __rsub__ = _infix("sub")
    __mul__, __rmul__ = _infix("mul")
    __truediv__, __rtruediv__ = _infix("div")
    __gt__, __lt__ = _infix("gt")[0], _infix("lt")[0]
    __ge__, __le__ = _infix("ge")[0], _infix("le")[0]
    __and__, __or__, __xor__ = _infix("and")[0], _infix("or")[0], _infix("xor")[0]
    eq, ne = _infix("eq")[0], _infix("ne")[0]

    def __neg__(self) -> "Term":
        return self.apply("neg", self)

    def __abs__(self) -> "Term":
        return self.apply("abs", self)

    def __invert__(self) -> "Term":
        return self.apply("not", self)


def apply(op: str, *args: Any) -> Term:
    """A term for the operation `op` of the table; at least one of `args` must be a term."""
    return next(a for a in args if isinstance(a, Term)).apply(op, *args)


def where(condition: Term, then: Any, other: Any) -> Term:
    """`then` where the `condition` holds, `other` elsewhere, both as numbers."""
    then, other = condition.lift(then), condition.lift(other)
    return apply("where", condition, apply("to_float", then), apply("to_float", other))


def times(x: Any, factor: Any) -> Any:
    """`x` times a number; `x` itself if the number is 1."""
    return x if factor == 1 else x * float(factor)
