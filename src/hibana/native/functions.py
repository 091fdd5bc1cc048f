"""Functions that call one another in what is compiled together, and the source that they make."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hibana.native.code import Code
from hibana.native.pointers import Kind, Pointer, taken
from hibana.native.types import Type
from hibana.native.values import Value
from hibana.native.writer import named

__all__ = ["Function", "declared", "function", "source"]

_TAIL = "!0 = !{i32 1}"


@dataclass(frozen=True)
class Function:
    """A function that :func:`function` wrote, that another library has, or that is at an address."""

    place: str
    """Its name, or what holds its address."""
    kinds: tuple[Kind, ...]
    result: Type | None = None
    texts: tuple[str, ...] = ()
    """What defines or declares it and those that it calls; nothing, if it is at an address."""

    @classmethod
    def at(cls, address: Pointer, *kinds: Kind) -> "Function":
        """The function at an address, which takes `kinds` and gives nothing."""
        return cls(address.text, kinds)

    def __call__(self, code: Code, *given: Value | Pointer) -> Value:
        """What it gives for what it is given."""
        if self.result is None:
            raise TypeError(f"{self.place} gives nothing")
        return Value(code.writer, self.result, code.writer.let("", self._called(code, given)))

    def do(self, code: Code, *given: Value | Pointer) -> None:
        """Calls it for what it does."""
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
    """The function that `body(code, **arguments)` writes, and which gives what that returns, if anything.

    It is known in what is compiled with it; outside, too, if `exported`.
    """
    code = Code()
    result = body(code, **{one: taken(code.writer, kind, named(one)) for one, kind in kinds.items()})
    given = ", ".join([f"{_said(kind)} {named(one)}" for one, kind in kinds.items()])
    type_ = None if result is None else result.type
    text = code.text(f"define {'' if exported else 'internal '}{type_ or 'void'} @{name}({given})", result)
    return Function(f"@{name}", tuple(kinds.values()), type_, (*code.texts, text))


def declared(name: str, result: Type | None, *kinds: Kind) -> Function:
    """The function `name` of another library."""
    given = ", ".join(map(_said, kinds))
    return Function(f"@{name}", kinds, result, (f"declare {result or 'void'} @{name}({given})",))


def source(texts: Iterable[str]) -> str:
    """The source that the `texts` of functions make, each once."""
    return "\n\n".join([*dict.fromkeys(texts), _TAIL]) + "\n"


def _said(kind: Kind) -> str:
    return str(kind) if isinstance(kind, Type) else "ptr"
