"""The names that Python code refers to: global variables and attributes."""

import dis
import re
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

_OF_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL"}
_COMPUTED = {
    *("__dict__", "__getattribute__", "attrgetter", "dir", "getattr", "hasattr", "methodcaller", "vars")
}
"""Functions and attributes with which code can read attributes by names that it computes."""
_UNSEEN = {"__annotations__", "__builtins__", "__doc__", "__globals__", "__subclasses__", "__type_params__"}
"""Attributes of functions and classes that are not compared."""
_UNSEEN_BY = {"IMPORT_NAME": "a module that is imported", "MATCH_CLASS": "what a class pattern matches"}
"""By the name of an instruction: what it reads that is not compared."""
_NAME = re.compile(r"[A-Za-z_][\w.]*")


class Names(NamedTuple):
    """The names in the code of a function and of the functions defined inside it."""

    variables: frozenset[str]
    """Global variables, read or written."""
    attributes: frozenset[str]
    """Attributes, and string constants that may be the name of one."""
    computes_names: bool
    """Whether the code may read attributes by computed names."""
    unseen: frozenset[str]
    """What the code reads that is not compared."""


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    """The names in `code` and in the code inside it."""
    lines = list(dis.get_instructions(code))
    variables = {line.argval for line in lines if line.opname in _OF_GLOBALS}
    attributes = {
        line.argval for line in lines if line.opcode in dis.hasname and line.opname not in _OF_GLOBALS
    }
    attributes.update(part for text in _texts(code.co_consts) for part in text.split("."))
    inner = [names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    unseen = (attributes & _UNSEEN) | {_UNSEEN_BY[line.opname] for line in lines if line.opname in _UNSEEN_BY}
    return Names(
        frozenset(variables).union(*(names.variables for names in inner)),
        frozenset(attributes).union(*(names.attributes for names in inner)),
        not _COMPUTED.isdisjoint(attributes | variables) or any(names.computes_names for names in inner),
        frozenset(unseen).union(*(names.unseen for names in inner)),
    )


def _texts(constants: Any) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, tuple | frozenset):
            yield from _texts(constant)
        elif isinstance(constant, str) and _NAME.fullmatch(constant):
            yield constant
