"""The names that Python code refers to: globals, attributes, imports; and which classes are Python.

Nothing here reads the values behind the names: :mod:`hibana.compiler.graph.fingerprint` does.
"""

import dis
import re
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

_OF_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL"}
_BY_ANY_NAME = {
    *("__dict__", "__getattribute__", "attrgetter", "dir", "getattr", "hasattr", "methodcaller", "vars")
}
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_OF_C = (
    *(types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType),
)
_HEAP_TYPE = 1 << 9
"""The flag of a class that a class statement, or C at run time, has made."""


class Names(NamedTuple):
    """The names in the code of a function and of those inside it."""

    variables: frozenset[tuple[str, ...]]
    """Global variables, read or written, each with the attributes that are read from it at once."""
    attributes: frozenset[str]
    """Attributes, and strings that may be the name of one."""
    imports: frozenset[tuple[str, int]]
    """Modules, and their level: 0 if the name is absolute."""
    any_attribute: bool
    """Whether it may read attributes by computed names."""


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    """The names in `code` and in the code inside it."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    lines = list(dis.get_instructions(code))
    variables = {_path(lines, i) for i, line in enumerate(lines) if line.opname in _OF_GLOBALS}
    imports = {
        (line.argval, lines[i - 2].argval) for i, line in enumerate(lines) if line.opname == "IMPORT_NAME"
    }
    attributes = {
        line.argval
        for line in lines
        if line.opcode in dis.hasname and line.opname not in {*_OF_GLOBALS, "IMPORT_NAME"}
    }
    attributes.update(part for text in _texts(code.co_consts) for part in text.split("."))
    computed = any(line.opname == "MATCH_CLASS" for line in lines)
    return Names(
        frozenset(variables).union(*(names.variables for names in inner)),
        frozenset(attributes).union(*(names.attributes for names in inner)),
        frozenset(imports).union(*(names.imports for names in inner)),
        computed
        or not _BY_ANY_NAME.isdisjoint(attributes.union(*variables))
        or any(names.any_attribute for names in inner),
    )


def _path(lines: list[dis.Instruction], at: int) -> tuple[str, ...]:
    """The global variable of the instruction `at`, and the attributes that the next ones read from it."""
    names = [lines[at].argval]
    for line in lines[at + 1 :]:
        if line.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        names.append(line.argval)
    return tuple(names)


def _texts(constants: Any) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, tuple | frozenset):
            yield from _texts(constant)
        elif isinstance(constant, str) and _NAME.fullmatch(constant):
            yield constant


@lru_cache(maxsize=1024)
def names_of_methods(kind: type) -> frozenset[str]:
    """The attributes that the methods which `kind` itself defines name."""
    own = [value for name, value in vars(kind).items() if name not in ("__init__", "__new__")]
    unwrapped = [getattr(value, "fget", getattr(value, "__func__", value)) for value in own]
    functions = [value for value in unwrapped if isinstance(value, types.FunctionType)]
    return frozenset().union(*(names_in(function.__code__).attributes for function in functions))


@lru_cache(maxsize=1024)
def native_bases(kind: type) -> tuple[type, ...]:
    """Those of the bases of `kind`, and itself, that are written in C, and may hold what Python can't see."""
    return tuple(base for base in kind.__mro__ if base is not object and not _is_python(base))


def _is_python(kind: type) -> bool:
    new = vars(kind).get("__new__")
    return bool(kind.__flags__ & _HEAP_TYPE) and not (
        (isinstance(new, types.BuiltinFunctionType) and new.__self__ is kind)
        or any(
            isinstance(value, _OF_C)
            and value.__objclass__ is kind
            and name not in ("__dict__", "__weakref__")
            for name, value in vars(kind).items()
        )
    )
