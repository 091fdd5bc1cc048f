"""Terms: the values of a step as Python expressions, in which the rules for ATen's operations are written.

``1 / (x * x)`` makes the operations of the table in the order in which Python evaluates them.
"""

from collections.abc import Callable
from typing import Any

from hibana.compiler.graph.step import Value

Rule = Callable[..., Any]
"""From the arguments of an ATen operation, terms and whatever else, to a term or a number."""


def _infix(op: str) -> tuple[Rule, Rule]:
    """The operator `op`, and the same with its operands swapped."""
    return lambda one, other: one.made(op, one, other), lambda one, other: one.made(op, other, one)


class Term:
    """A value of the step: `known`, or what `argument` reads of a node of the graph on first use."""

    def __init__(self, argument: Callable[[Any], Value], make: Callable[..., Value], known: Any) -> None:
        self._argument, self._make, self._known = argument, make, known

    @property
    def value(self) -> Value:
        return self._known if isinstance(self._known, Value) else self._argument(self._known)

    def lift(self, other: Any) -> "Term":
        """`other` as a term: a number becomes a value of the step."""
        return other if isinstance(other, Term) else Term(self._argument, self._make, self._argument(other))

    def made(self, op: str, *args: Any) -> "Term":
        """A term for ``op(*args)``: `op` is a name in the table of operations, `args` terms or numbers."""
        return Term(self._argument, self._make, self._make(op, *[self.lift(a).value for a in args]))

    __add__, __radd__ = _infix("add")
    __sub__, __rsub__ = _infix("sub")
    __mul__, __rmul__ = _infix("mul")
    __truediv__, __rtruediv__ = _infix("div")
    __gt__, __lt__ = _infix("gt")[0], _infix("lt")[0]
    __ge__, __le__ = _infix("ge")[0], _infix("le")[0]
    __and__, __or__, __xor__ = _infix("and")[0], _infix("or")[0], _infix("xor")[0]
    eq, ne = _infix("eq")[0], _infix("ne")[0]

    def __neg__(self) -> "Term":
        return self.made("neg", self)

    def __abs__(self) -> "Term":
        return self.made("abs", self)

    def __invert__(self) -> "Term":
        return self.made("not", self)


def apply(op: str, *args: Any) -> Term:
    """The operation `op` of the table of `args`, of which at least one is a term."""
    return next(a for a in args if isinstance(a, Term)).made(op, *args)


def where(condition: Term, then: Any, other: Any) -> Term:
    """`then` where the `condition` holds, else `other`."""
    then, other = condition.lift(then), condition.lift(other)
    return apply("where", condition, apply("to_float", then), apply("to_float", other))


def times(x: Any, factor: Any) -> Any:
    """`x` times a number, which may be one."""
    return x if factor == 1 else x * float(factor)
