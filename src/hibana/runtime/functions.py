"""Functions that kernels call, and the LLVM IR module that a kernel and its functions make."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hibana.runtime.code import Code
from hibana.runtime.pointers import Kind, Pointer, taken
from hibana.runtime.types import Type
from hibana.runtime.values import Value
from hibana.runtime.writer import named

_TAIL = "!0 = !{i32 1}"


@dataclass(frozen=True)
class Function:
    """A callee: built by :func:`function`, declared from another library, or at an address."""

    place: str
    """Its LLVM identifier, or the one that holds its address."""
    kinds: tuple[Kind, ...]
    result: Type | None = None
    texts: tuple[str, ...] = ()
    """Definitions and declarations of it and of its callees; empty if it is at an address."""

    @classmethod
    def at(cls, address: Pointer, *kinds: Kind) -> "Function":
        """The ``void`` function at an address, with parameters of `kinds`."""
        return cls(address.text, kinds)

    def __call__(self, code: Code, *given: Value | Pointer) -> Value:
        """Emits a call and returns its result."""
        if self.result is None:
            raise TypeError(f"{self.place} returns nothing: call it by do()")
        return Value(code.writer, self.result, code.writer.let("", self._called(code, given)))

    def do(self, code: Code, *given: Value | Pointer) -> None:
        """Emits a call without a result."""
        code.writer.do(self._called(code, given))

    def _called(self, code: Code, given: tuple[Value | Pointer, ...]) -> str:
        kinds = tuple([one.type if isinstance(one, Value) else type(one) for one in given])
        if kinds != self.kinds:
            raise TypeError(f"{self.place} takes {[*map(_said, self.kinds)]}, got {[*map(_said, kinds)]}")
        code.texts |= dict.fromkeys(self.texts)
        said = ", ".join([str(one) if isinstance(one, Value) else f"ptr {one.text}" for one in given])
        return f"call {self.result or 'void'} {self.place}({said})"


def function(
    name: str, body: Callable[..., Value | None], kinds: Mapping[str, Kind], *, exported: bool = False
) -> Function:
    """Builds the function that ``body(code, **arguments)`` writes; it returns what `body` returns.

    Its linkage is internal to the module unless it is `exported`.
    """
    code = Code()
    result = body(code, **{one: taken(code.writer, kind, named(one)) for one, kind in kinds.items()})
    given = ", ".join([f"{_said(kind)} {named(one)}" for one, kind in kinds.items()])
    type_ = None if result is None else result.type
    text = code.text(f"define {'' if exported else 'internal '}{type_ or 'void'} @{name}({given})", result)
    return Function(f"@{name}", tuple(kinds.values()), type_, (*code.texts, text))


def external_function(name: str, result: Type | None, *kinds: Kind) -> Function:
    """Declares the function `name` of another library."""
    given = ", ".join(map(_said, kinds))
    return Function(f"@{name}", kinds, result, (f"declare {result or 'void'} @{name}({given})",))


def source(texts: Iterable[str]) -> str:
    """The LLVM IR module of these definitions and declarations, each once."""
    return "\n\n".join([*dict.fromkeys(texts), _TAIL]) + "\n"


def _said(kind: Kind) -> str:
    return str(kind) if isinstance(kind, Type) else "ptr"
