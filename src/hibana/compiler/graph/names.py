"""The names in Python code: global variables and attributes that a function may read."""

import dis
import re
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

_GLOBAL_INSTRUCTIONS = {
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL")
}
"""Names of the bytecode instructions that refer to global variables."""
_READS_ANY_ATTRIBUTE = {
    *("__class__", "__dict__", "__getattribute__", "attrgetter", "dir", "getattr", "hasattr"),
    *("methodcaller", "type", "vars"),
}
"""Functions and attributes with which code can read attributes by names that do not occur in it."""
_UNTRACKED_ATTRIBUTES = {
    *("__annotations__", "__builtins__", "__doc__", "__globals__", "__subclasses__", "__type_params__")
}
"""Attributes of functions and classes whose changes hibana does not detect."""
_UNTRACKED_INSTRUCTIONS = {"IMPORT_NAME": "an imported module", "MATCH_CLASS": "a class pattern"}
"""Bytecode instructions that read objects whose changes hibana does not detect, and what they read."""
_DOTTED_NAME = re.compile(r"[A-Za-z_][\w.]*")


class Names(NamedTuple):
    """The names in the code of a function and of the functions defined inside it."""

    variables: frozenset[str]
    """Global variables, read or written."""
    attributes: frozenset[str]
    """Attributes, and string constants that may be the name of an attribute."""
    computes_names: bool
    """Whether the code may read attributes by other names."""
    untracked: frozenset[str]
    """Descriptions of objects in the code whose changes hibana does not detect."""


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    """The names in `code`, including the code of functions defined inside it."""
    lines = list(dis.get_instructions(code))
    variables = {line.argval for line in lines if line.opname in _GLOBAL_INSTRUCTIONS}
    attributes = {
        line.argval
        for line in lines
        if line.opcode in dis.hasname and line.opname not in _GLOBAL_INSTRUCTIONS
    }
    attributes.update(part for text in _dotted_names(code.co_consts) for part in text.split("."))
    computes_names = not _READS_ANY_ATTRIBUTE.isdisjoint(attributes | variables)
    untracked = attributes & _UNTRACKED_ATTRIBUTES
    untracked |= {_UNTRACKED_INSTRUCTIONS[i.opname] for i in lines if i.opname in _UNTRACKED_INSTRUCTIONS}
    for inner in (names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)):
        variables |= inner.variables
        attributes |= inner.attributes
        computes_names |= inner.computes_names
        untracked |= inner.untracked
    return Names(frozenset(variables), frozenset(attributes), computes_names, frozenset(untracked))


def _dotted_names(constants: Any) -> Iterator[str]:
    """The strings in nested tuples of `constants` that have the form of attribute names, ``a`` or ``a.b``."""
    for constant in constants:
        if isinstance(constant, tuple | frozenset):
            yield from _dotted_names(constant)
        elif isinstance(constant, str) and _DOTTED_NAME.fullmatch(constant):
            yield constant
