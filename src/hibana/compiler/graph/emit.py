"""Emits the source of a scalar body from values, in a given language.

What every backend shares: the order of statements, what gets a name and what is written in place. How a
language says an operation is its dialect's business, how memory is walked is its backend's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import evaluated
from hibana.compiler.graph.step import Value

__all__ = ["Dialect", "statements"]

LONGEST = 60
"""A value used once is written in place up to this many characters."""


@dataclass(frozen=True)
class Dialect:
    """How a language says each operation: a template with ``{0}``, ``{1}``, … for its arguments.

    That of ``product`` has ``{matrix}`` as well.
    """

    name: str
    operations: Mapping[str, str]
    number: str
    """How it says a whole number: a template with ``{0}``."""
    assigned: str = "{name} = {said}"
    """How it gives a number a name: a template,"""
    assigned_truth: str = ""
    """and a truth value, if otherwise."""
    transposed: str = "{0}.T"
    """What it calls the matrix ``{0}``, transposed."""


def statements(
    stores: Mapping[str, Value], leaves: Mapping[str, str], dialect: Dialect
) -> tuple[list[str], dict[str, str]]:
    """Statements that compute `stores`.

    Args:
        stores: a name for each value wanted; a value that gets a variable gets one of that name.
        leaves: what stands for each named leaf.
        dialect: the language.

    Returns:
        The statements in order, and for each store what stands for its value.

    Raises:
        Unsupported: if the language does not say an operation.
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
    """A name for the matrix of a product, transposed or not."""
    if value.op != "product":
        return ""
    index, turned = divmod(int(value.data), 2)
    return dialect.transposed.format(f"M{index}") if turned else f"M{index}"


def _bare(text: str) -> str:
    """`text` without the brackets around it, if its first bracket closes at its end."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if text[0] == "(" and i == len(text) - 1 else text
    return text
