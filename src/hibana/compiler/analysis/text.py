"""Statements of a language that compute the values of a step, with variables for values used repeatedly."""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass

from hibana.compiler.graph.analysis import Analysis, evaluation_order
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import OPERATIONS, Operation, Unsupported
from hibana.compiler.graph.step import Value

_LONGEST = 60
"""Maximum characters of an expression that is written in place instead of being assigned to a variable."""


@dataclass(frozen=True)
class Dialect:
    """The templates of a language."""

    name: str
    operations: Mapping[str, str]
    """By operation, with ``{0}``, ``{1}``, … for the arguments; ``product`` also has ``{matrix}``."""
    number: str
    """An integer, ``{0}``."""
    transposed: str = "{0}.T"
    """The transpose of the matrix ``{0}``."""
    bare: Container[str] = ()
    """Operations whose arguments need no parentheses around them."""
    assigns: bool = True
    """Whether values that are long or used repeatedly become variables."""


def statements(
    stores: Mapping[Leaf, Value],
    leaves: Mapping[Leaf, str],
    dialect: Dialect,
    name: Callable[[Leaf], str] = "{}_new".format,
) -> tuple[list[str], dict[Leaf, str]]:
    """Statements that compute `stores`, in order, and the expression of each store.

    Args:
        stores: the values to compute.
        leaves: the expressions of leaves; those of others are their names.
        dialect: the language.
        name: returns the variable for the value that is stored as a leaf.

    Raises:
        Unsupported: if the language has no form of an operation.
    """
    names = {value: name(leaf) for leaf, value in reversed([*stores.items()])}
    writing = _Writing(stores.values(), leaves, dialect, names)
    results = writing.run(stores.values())
    return writing.lines, dict(zip(stores, map(_bare, results), strict=True))


class _Writing(Analysis[str]):
    """Collects the statements of one function body; its results are expressions."""

    def __init__(
        self,
        results: Collection[Value],
        leaves: Mapping[Leaf, str],
        dialect: Dialect,
        names: Mapping[Value, str],
    ) -> None:
        super().__init__()
        self.leaves, self.dialect, self.names = leaves, dialect, names
        self.lines: list[str] = []
        order = evaluation_order(results, ())
        self.uses: dict[Value, int] = dict.fromkeys(order, 0)
        for value in order:
            template = dialect.operations.get(value.op, "")
            for i, argument in enumerate(value.args):
                self.uses[argument] += max(1, template.count(f"{{{i}}}"))
        for value in results:
            self.uses[value] += 1

    def on_number(self, value: Value) -> str:
        """The text of a number in the dialect."""
        return self.dialect.number.format(value.data)

    def leaf(self, value: Value) -> str:
        """The expression of a leaf."""
        return self.leaves.get(value.leaf) or str(value.leaf)

    def operation(self, value: Value, row: Operation, args: list[str]) -> str:
        """The expression of an operation on the expressions `args`, or the variable that holds it."""
        if value.op in self.dialect.bare:
            args = [*map(_bare, args)]
        return self._named(value, self._template(value).format(*args))

    def product(self, value: Value, args: list[str]) -> str:
        """The variable that holds a product with a matrix, which is called ``M0``, ``M1`` and so on."""
        index, transposed = value.matrix
        matrix = self.dialect.transposed.format(f"M{index}") if transposed else f"M{index}"
        return self._named(value, self._template(value).format(*args, matrix=matrix))

    def _template(self, value: Value) -> str:
        """The form of an operation in the language, with ``{0}`` for its first argument."""
        template = self.dialect.operations.get(value.op)
        if template is None:
            raise Unsupported(f"operation {value.op!r} has no {self.dialect.name} implementation")
        return template

    def _named(self, value: Value, text: str) -> str:
        """The expression `text`, or a new variable for it if it is long or used more than once."""
        if not self.dialect.assigns or (self.uses[value] == 1 and len(text) <= _LONGEST):
            return text
        name = self.names.get(value, f"a{len(self.lines)}")
        self.lines.append(f"{name} = {_bare(text)}")
        return name


def templates(column: str) -> dict[str, str]:
    """The forms in a column of the table of operations, by operation."""
    return {name: text for name, row in OPERATIONS.items() if (text := getattr(row, column))}


def _bare(text: str) -> str:
    """`text` without parentheses around all of it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if text[0] == "(" and i == len(text) - 1 else text
    return text
