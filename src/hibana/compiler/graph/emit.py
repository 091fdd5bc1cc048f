"""Emits statements that compute values, in a given language: their order, and which values get a name."""

from collections.abc import Mapping
from dataclasses import dataclass

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import evaluated
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
    assigned: str = "{name} = {said}"
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
    order = evaluated(stores.values(), ())
    uses: dict[Value, int] = dict.fromkeys(order, 0)
    for value in order:
        template = dialect.operations.get(value.op, "")
        for i, argument in enumerate(value.args):
            uses[argument] += max(1, template.count(f"{{{i}}}"))
    names: dict[Value, str] = {}
    for name, value in stores.items():
        names.setdefault(value, f"{name}_new")
        uses[value] += 1
    text: dict[Value, str] = {}
    lines: list[str] = []
    for value in order:
        if value.op == "number":
            text[value] = dialect.number.format(value.data)
        elif not value.args:
            text[value] = leaves[str(value.data)]
        else:
            if value.op not in dialect.operations:
                raise Unsupported(f"{value.op} is nothing that hibana says in {dialect.name}")
            said = dialect.operations[value.op].format(
                *(text[a] for a in value.args), matrix=_matrix(value, dialect)
            )
            if uses[value] > 1 or len(said) > LONGEST:
                name = names.get(value, f"a{len(lines)}")
                template = (value.boolean and dialect.assigned_truth) or dialect.assigned
                lines.append(template.format(name=name, said=_bare(said)))
                said = name
            text[value] = said
    return lines, {name: _bare(text[value]) for name, value in stores.items()}


def _matrix(value: Value, dialect: Dialect) -> str:
    if value.op != "product":
        return ""
    index, turned = divmod(int(value.data), 2)
    return dialect.transposed.format(f"M{index}") if turned else f"M{index}"


def _bare(text: str) -> str:
    """`text` without the parentheses around it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if text[0] == "(" and i == len(text) - 1 else text
    return text
