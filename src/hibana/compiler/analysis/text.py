"""Statements that compute values, in a given language: their order, and which values get a name."""

from collections.abc import Mapping
from dataclasses import dataclass

from hibana.compiler.graph.analysis import Analysis, evaluation_order
from hibana.compiler.graph.ops import OPERATIONS, Operation, Unsupported
from hibana.compiler.graph.step import Value

LONGEST = 60
"""A value used once is written in place up to this many characters."""


@dataclass(frozen=True)
class Dialect:
    """A language, as templates: of operations with ``{0}``, ``{1}``, … for their arguments."""

    name: str
    operations: Mapping[str, str]
    """That of ``product`` has ``{matrix}`` as well."""
    number: str
    """Of an integer ``{0}``."""
    assigned: str = "{name} = {text}"
    """Of the definition of a number, and of a truth value if it differs."""
    assigned_truth: str = ""
    transposed: str = "{0}.T"
    """Of the matrix ``{0}``, transposed."""


def statements(
    stores: Mapping[str, Value], leaves: Mapping[str, str], dialect: Dialect
) -> tuple[list[str], dict[str, str]]:
    """Statements that compute `stores`, in order, and the expression of each store.

    Args:
        stores: a name for each value; a value that becomes a variable has that name.
        leaves: the expression of each named leaf.
        dialect: the language.

    Raises:
        Unsupported: if the language lacks an operation.
    """
    writing = _Writing(stores, leaves, dialect)
    results = writing.run(stores.values())
    return writing.lines, dict(zip(stores, map(_bare, results), strict=True))


class _Writing(Analysis[str]):
    """The statements of one function body; the results are expressions."""

    def __init__(self, stores: Mapping[str, Value], leaves: Mapping[str, str], dialect: Dialect) -> None:
        super().__init__()
        self.leaves, self.dialect = leaves, dialect
        self.lines: list[str] = []
        order = evaluation_order(stores.values(), ())
        self.uses: dict[Value, int] = dict.fromkeys(order, 0)
        for value in order:
            template = dialect.operations.get(value.op, "")
            for i, argument in enumerate(value.args):
                self.uses[argument] += max(1, template.count(f"{{{i}}}"))
        self.names: dict[Value, str] = {}
        for name, value in stores.items():
            self.names.setdefault(value, f"{name}_new")
            self.uses[value] += 1

    def on_number(self, value: Value) -> str:
        return self.dialect.number.format(value.data)

    def leaf(self, value: Value) -> str:
        return self.leaves[str(value.data)]

    def operation(self, value: Value, row: Operation, args: list[str]) -> str:
        return self._named(value, self._template(value).format(*args))

    def product(self, value: Value, args: list[str]) -> str:
        index, transposed = value.matrix
        matrix = self.dialect.transposed.format(f"M{index}") if transposed else f"M{index}"
        return self._named(value, self._template(value).format(*args, matrix=matrix))

    def _template(self, value: Value) -> str:
        template = self.dialect.operations.get(value.op)
        if template is None:
            raise Unsupported(f"operation {value.op!r} has no {self.dialect.name} implementation")
        return template

    def _named(self, value: Value, text: str) -> str:
        """`text`, or a variable that is assigned it if it is long or used more than once."""
        if self.uses[value] == 1 and len(text) <= LONGEST:
            return text
        name = self.names.get(value, f"a{len(self.lines)}")
        template = (value.boolean and self.dialect.assigned_truth) or self.dialect.assigned
        self.lines.append(template.format(name=name, text=_bare(text)))
        return name


def templates(column: str) -> dict[str, str]:
    """The entries of a column of the table of operations, by operation."""
    return {name: text for name, row in OPERATIONS.items() if (text := getattr(row, column))}


def _bare(text: str) -> str:
    """`text` without the parentheses around it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if text[0] == "(" and i == len(text) - 1 else text
    return text
