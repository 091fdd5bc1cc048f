"""Kernels written in Python: declared with their arguments, compiled when first used, launched by keyword.

``@kernel`` makes a :class:`Launcher` of a function ``body(code, begin, end, *, ...)`` that emits the code for
the work items `begin` to `end`. Its keyword parameters are the kernel's arguments: a :class:`Pointer` is a
tensor's address, a :class:`Value` an integer, a :class:`Group` one integer for each of its names. Any other
parameter is an option: each value of it compiles a new kernel.
"""

import inspect
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from hibana.runtime.build import Kernel, assemble
from hibana.runtime.code import Code
from hibana.runtime.functions import source
from hibana.runtime.pointers import Pointer
from hibana.runtime.threads import run
from hibana.runtime.types import LONG
from hibana.runtime.values import Group, Value

SHAPES = 512
"""Combinations of options and integers that a launcher remembers."""
_OWN = ("code", "begin", "end")


class Arguments:
    """The arguments of a kernel, read from the signature of its `body`."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.addresses: dict[str, type[Pointer]] = {}
        self.numbers: list[str] = []
        self.groups: dict[str, type[Group]] = {}
        self.options: list[str] = []
        for name, parameter in inspect.signature(body, eval_str=True).parameters.items():
            kind = parameter.annotation
            if name in _OWN:
                continue
            if isinstance(kind, type) and issubclass(kind, Pointer):
                self.addresses[name] = kind
            elif kind is Value:
                self.numbers.append(name)
            elif isinstance(kind, type) and issubclass(kind, Group):
                self.groups[name] = kind
                self.numbers += kind.__annotations__
            else:
                self.options.append(name)
        self.order = (*self.addresses, *self.numbers)
        """Names in the order of the argument block; eight bytes each."""
        self.names = frozenset([*self.order, *self.options])
        self.tensors, self.fixed = _chosen(self.addresses), _chosen([*self.options, *self.numbers])
        self._pack = struct.Struct(f"{len(self.addresses)}q").pack

    def packed(self, tensors: Iterable[Tensor | None]) -> bytes:
        """The addresses of `tensors` in declared order, as bytes; 0 for None."""
        return self._pack(*[0 if tensor is None else address_of(tensor) for tensor in tensors])


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's memory.

    Raises:
        ValueError: if the memory holds the negatives of the tensor's numbers, as of ``z.conj().imag``.
    """
    if tensor.is_neg():
        raise ValueError("kernels read memory, which holds the negatives of this view: call resolve_neg()")
    return tensor.data_ptr()


class BoundLauncher(NamedTuple):
    """A kernel bound to its integers and options; each call gives the tensors alone."""

    launcher: "Launcher"
    address: int
    numbers: bytes

    def __call__(self, pieces: int, grain: int = 1, /, **tensors: Tensor | None) -> None:
        """Runs the kernel as :class:`Launcher` does."""
        arguments = self.launcher.arguments
        try:
            ordered = arguments.tensors(tensors)
        except KeyError:
            raise self.launcher.refusal(tensors, arguments.addresses.keys()) from None
        if len(tensors) != len(ordered):
            raise self.launcher.refusal(tensors, arguments.addresses.keys())
        run(self.address, pieces, arguments.packed(ordered) + self.numbers, grain)


class Launcher:
    """Compiles and runs a kernel: ``launcher(pieces, grain, name=..., ...)``.

    Raises:
        TypeError: if an argument is missing or unknown.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = body
        self.name = body.__name__
        self._built: dict[tuple[Hashable, ...], Kernel] = {}
        self._sized: dict[tuple[Hashable, ...], BoundLauncher] = {}

    @cached_property
    def arguments(self) -> Arguments:
        """Parsed on first use, so that importing a kernel costs nothing."""
        return Arguments(self.body)

    def __call__(self, pieces: int, grain: int = 1, /, **given: Any) -> None:
        """Runs the work items ``range(pieces)``, on one thread if they are at most `grain`.

        `given` are a tensor or None for each address, an int for each integer, and the options.
        """
        arguments = self.arguments
        try:
            fixed, tensors = arguments.fixed(given), arguments.tensors(given)
        except KeyError:
            raise self.refusal(given, arguments.names) from None
        if len(given) != len(arguments.names):
            raise self.refusal(given, arguments.names)
        _, address, numbers = self._sized.get(fixed) or self._made_ready(fixed)
        run(address, pieces, arguments.packed(tensors) + numbers, grain)

    def bind(self, **fixed: Hashable) -> BoundLauncher:
        """Binds the integers and options."""
        arguments = self.arguments
        names = arguments.names - arguments.addresses.keys()
        if fixed.keys() != names:
            raise self.refusal(fixed, names)
        return self._made_ready(arguments.fixed(fixed))

    def source(self, **options: Hashable) -> str:
        """The LLVM IR of the kernel."""
        code, kinds = Code(), dict.fromkeys(self.arguments.numbers, LONG)
        taken = code.arguments({**self.arguments.addresses, **kinds})
        for name, group in self.arguments.groups.items():
            taken[name] = group(**{number: taken.pop(number) for number in group.__annotations__})
        begin, end = (Value(code.writer, LONG, text) for text in ("%begin", "%end"))
        self.body(code, begin, end, **taken, **options)
        head = f"define void @{self.name}(i64 %begin, i64 %end, ptr noalias readonly %args) nounwind"
        return source([*code.texts, code.text(head)])

    def built(self, *options: Hashable) -> Kernel:
        """The compiled kernel for these values of its options."""
        if options not in self._built:
            text = self.source(**dict(zip(self.arguments.options, options, strict=True)))
            (self._built[options],) = assemble(text, (self.name,))
        return self._built[options]

    def _made_ready(self, fixed: tuple[Any, ...]) -> BoundLauncher:
        """Compiles the kernel if need be, and packs its integers."""
        options, numbers = fixed[: len(self.arguments.options)], fixed[len(self.arguments.options) :]
        address = self.built(*options).address
        if len(self._sized) >= SHAPES:
            self._sized.clear()
        found = self._sized[fixed] = BoundLauncher(self, address, struct.pack(f"{len(numbers)}q", *numbers))
        return found

    def refusal(self, given: Mapping[str, object], names: Set[str]) -> TypeError:
        """The TypeError for arguments `given` that do not match `names`."""
        missing, unknown = sorted(names - given.keys()), sorted(given.keys() - names)
        return TypeError(f"kernel {self.name}: missing {missing}, not among its arguments {unknown}")


def _chosen(names: Iterable[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function that returns the values of `names` from a mapping, as a tuple."""
    wanted = list(names)
    if len(wanted) > 1:
        return itemgetter(*wanted)
    return lambda given: tuple([given[name] for name in wanted])


def kernel(body: Callable[..., None]) -> Launcher:
    """Decorator: makes a :class:`Launcher` of `body`; see the module's docstring."""
    return Launcher(body)
