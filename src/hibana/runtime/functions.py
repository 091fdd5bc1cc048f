"""Functions that kernels call, and the text of an LLVM IR module."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hibana.runtime.code import Code
from hibana.runtime.pointers import Kind, Pointer, value_or_pointer
from hibana.runtime.types import Type
from hibana.runtime.values import Value
from hibana.runtime.writer import named

_METADATA = "!0 = !{i32 1}"
"""The operand of ``!nontemporal``."""


@dataclass(frozen=True)
class Function:
    """A function that kernels call: built by :func:`function`, of another library, or at an address."""

    identifier: str
    """The LLVM identifier of the function, or of its address."""
    kinds: tuple[Kind, ...]
    result: Type | None = None
    texts: tuple[str, ...] = ()
    """Definitions and declarations of the function and of its callees; empty if it is at an address."""

    @classmethod
    def at_address(cls, address: Pointer, *kinds: Kind) -> "Function":
        """The ``void`` function at `address`, with parameters of `kinds`."""
        return cls(address.text, kinds)

    def __call__(self, code: Code, *arguments: Value | Pointer) -> Value:
        """Emits a call and returns its result."""
        assert self.result is not None, f"{self.identifier} returns nothing: call it by do()"
        return Value(code.writer, self.result, code.writer.let("", self._call(code, arguments)))

    def do(self, code: Code, *arguments: Value | Pointer) -> None:
        """Emits a call without a result."""
        code.writer.do(self._call(code, arguments))

    def _call(self, code: Code, arguments: tuple[Value | Pointer, ...]) -> str:
        """LLVM's instruction of a call; adds the function's definition to `code`."""
        kinds = tuple([x.type if isinstance(x, Value) else type(x) for x in arguments])
        if kinds != self.kinds:
            expected, actual = ([*map(_llvm_type, types)] for types in (self.kinds, kinds))
            raise TypeError(f"{self.identifier} takes {expected}, got {actual}")
        code.texts |= dict.fromkeys(self.texts)
        operands = ", ".join([str(x) if isinstance(x, Value) else f"ptr {x.text}" for x in arguments])
        return f"call {self.result or 'void'} {self.identifier}({operands})"


def function(
    name: str, body: Callable[..., Value | None], kinds: Mapping[str, Kind], *, exported: bool = False
) -> Function:
    """Builds a function from Python code.

    Args:
        name: the function's name.
        body: called as ``body(code, **arguments)``; emits the function and returns its result.
        kinds: the types of the arguments by their names.
        exported: whether other modules can call the function.
    """
    code = Code()
    result = body(code, **{x: value_or_pointer(code.writer, kind, named(x)) for x, kind in kinds.items()})
    parameters = ", ".join([f"{_llvm_type(kind)} {named(x)}" for x, kind in kinds.items()])
    type_ = None if result is None else result.type
    linkage = "" if exported else "internal "
    text = code.text(f"define {linkage}{type_ or 'void'} @{name}({parameters})", result)
    return Function(f"@{name}", tuple(kinds.values()), type_, (*code.texts, text))


def external_function(name: str, result: Type | None, *kinds: Kind) -> Function:
    """Declares the function `name` of another library."""
    parameters = ", ".join(map(_llvm_type, kinds))
    return Function(f"@{name}", kinds, result, (f"declare {result or 'void'} @{name}({parameters})",))


def source(texts: Iterable[str]) -> str:
    """The LLVM IR module with the definitions and declarations `texts`, each once."""
    return "\n\n".join([*dict.fromkeys(texts), _METADATA]) + "\n"


def _llvm_type(kind: Kind) -> str:
    """LLVM's name of the type `kind`; all addresses are ``ptr``."""
    return str(kind) if isinstance(kind, Type) else "ptr"
