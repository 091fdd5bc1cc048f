"""Functions that kernels call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hibana.runtime.code import Code
from hibana.runtime.loops import Call, Declaration, Definition, Linkage, Parameter, Result
from hibana.runtime.pointers import Kind, Pointer, value_or_pointer
from hibana.runtime.types import Type
from hibana.runtime.values import Value


@dataclass(frozen=True)
class Function:
    """A function that kernels call: built by :func:`function`, of another library, or at an address."""

    callee: Definition | Declaration | Result
    """The function, or its address."""
    kinds: tuple[Kind, ...]
    result: Type | None = None

    @classmethod
    def at_address(cls, address: Pointer, *kinds: Kind) -> "Function":
        """The ``void`` function at `address`, with parameters of `kinds`."""
        return cls(address.term, kinds)

    def __call__(self, code: Code, *arguments: Value | Pointer) -> Value:
        """Appends a call and returns its result."""
        assert self.result is not None, f"{self._name} returns nothing: call it by do()"
        result = Result(self.result)
        self._call(code, result, arguments)
        return Value(code.builder, self.result, result)

    def do(self, code: Code, *arguments: Value | Pointer) -> None:
        """Appends a call without a result."""
        self._call(code, None, arguments)

    @property
    def _name(self) -> str:
        """The name of the function."""
        return "the function" if isinstance(self.callee, Result) else self.callee.name

    def _call(self, code: Code, result: Result | None, arguments: tuple[Value | Pointer, ...]) -> None:
        """Appends a call, after checking the types of its arguments."""
        kinds = tuple([x.type if isinstance(x, Value) else type(x) for x in arguments])
        if kinds != self.kinds:
            expected, actual = ([*map(_name_of_type, types)] for types in (self.kinds, kinds))
            raise TypeError(f"{self._name} takes {expected}, got {actual}")
        code.builder.add(Call(result, self.callee, tuple([x.term for x in arguments])))


def function(name: str, body: Callable[..., Value | None], kinds: Mapping[str, Kind]) -> Function:
    """Builds a function from Python code.

    Args:
        name: the function's name.
        body: called as ``body(code, **arguments)``; builds the function and returns its result.
        kinds: the types of the arguments by their names.
    """
    built = definition(name, body, kinds, "internal")
    return Function(built, tuple(kinds.values()), None if built.result is None else built.result.type)


def definition(
    name: str, body: Callable[..., Value | None], kinds: Mapping[str, Kind], linkage: Linkage
) -> Definition:
    """The data of a function with this `linkage`; the other arguments are those of :func:`function`."""
    code = Code()
    parameters = {x: Parameter(_type_of(kind), name=x) for x, kind in kinds.items()}
    arguments = {x: value_or_pointer(code.builder, kinds[x], term) for x, term in parameters.items()}
    result = body(code, **arguments)
    returned = None if result is None else result.term
    return Definition(name, tuple(parameters.values()), code.builder.take(), returned, linkage)


def external_function(name: str, result: Type | None, *kinds: Kind) -> Function:
    """Declares the function `name` of another library."""
    return Function(Declaration(name, result, tuple(map(_type_of, kinds))), kinds, result)


def _type_of(kind: Kind) -> Type | None:
    """The type of a value; None for an address."""
    return kind if isinstance(kind, Type) else None


def _name_of_type(kind: Kind) -> str:
    """The name of the type `kind` in a message; all addresses are ``ptr``."""
    return str(_type_of(kind) or "ptr")
