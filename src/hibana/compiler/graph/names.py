"""The names in Python code: global variables and attributes that a function may read."""

import dis
import types
from functools import lru_cache
from typing import NamedTuple

_GLOBAL_INSTRUCTIONS = {
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL")
}
"""Names of the bytecode instructions that refer to global variables."""
_READS_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}
"""Names of the instructions that read an attribute of the object before."""
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


class Names(NamedTuple):
    """The names in the code of a function and of the functions defined inside it."""

    variables: frozenset[tuple[str, ...]]
    """Global variables, read or written, each with the attributes that are read from it: ``torch.nn.Linear``
    is ``("torch", "nn", "Linear")``."""
    attributes: frozenset[str]
    """Names of attributes."""
    computes_names: bool
    """Whether the code may read attributes by other names."""
    untracked: frozenset[str]
    """Descriptions of objects in the code whose changes hibana does not detect."""


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    """The names in `code`, including the code of functions defined inside it."""
    lines = list(dis.get_instructions(code))
    chains: list[list[str]] = []
    attributes = set()
    follows_chain = False
    for line in lines:
        if line.opname in _GLOBAL_INSTRUCTIONS:
            chains.append([line.argval])
            follows_chain = True
            continue
        follows_chain = follows_chain and line.opname in _READS_ATTRIBUTE
        if line.opcode in dis.hasname:
            attributes.add(line.argval)
        if follows_chain:
            chains[-1].append(line.argval)
    variables = {tuple(chain) for chain in chains}
    computes_names = not _READS_ANY_ATTRIBUTE.isdisjoint(attributes | {chain[0] for chain in chains})
    untracked = attributes & _UNTRACKED_ATTRIBUTES
    untracked |= {_UNTRACKED_INSTRUCTIONS[i.opname] for i in lines if i.opname in _UNTRACKED_INSTRUCTIONS}
    for inner in (names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)):
        variables |= inner.variables
        attributes |= inner.attributes
        computes_names |= inner.computes_names
        untracked |= inner.untracked
    return Names(frozenset(variables), frozenset(attributes), computes_names, frozenset(untracked))
