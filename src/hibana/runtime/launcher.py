"""Kernels written in Python: declared with their arguments, compiled at first use, called by keyword.

``@kernel`` turns a function ``body(code, begin, end, *, ...)``, which emits the code for the work items
`begin` to `end`, into a :class:`Launcher`. The keyword parameters of `body` are the kernel's arguments: a
:class:`Pointer` is a tensor's address, a :class:`Value` an integer, a :class:`Group` one integer for each
of its names. Any other parameter is an option; each value of an option compiles another kernel.
"""

import inspect
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

from torch import Tensor

from hibana.runtime.build import Kernel, assemble
from hibana.runtime.code import Code
from hibana.runtime.llvm import module
from hibana.runtime.pointers import Pointer
from hibana.runtime.threads import pack_arguments, run
from hibana.runtime.types import LONG
from hibana.runtime.values import Group, Value


class Signature:
    """The arguments of a kernel, read from the parameters of its `body`."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.addresses: dict[str, type[Pointer]] = {}
        self.integers: list[str] = []
        self.groups: dict[str, type[Group]] = {}
        self.options: list[str] = []
        for name, parameter in inspect.signature(body, eval_str=True).parameters.items():
            kind = parameter.annotation
            if name in ("code", "begin", "end"):
                continue
            if isinstance(kind, type) and issubclass(kind, Pointer):
                self.addresses[name] = kind
            elif kind is Value:
                self.integers.append(name)
            elif isinstance(kind, type) and issubclass(kind, Group):
                self.groups[name] = kind
                self.integers += kind.__annotations__
            else:
                self.options.append(name)
        self.names = frozenset([*self.addresses, *self.integers, *self.options])


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's memory.

    Raises ValueError if the memory holds the negatives of the tensor's numbers, as for ``z.conj().imag``.
    """
    if tensor.is_neg():
        raise ValueError("kernels read memory, which holds the negatives of this view: call resolve_neg()")
    return tensor.data_ptr()


class Launcher:
    """Compiles and runs a kernel: ``launcher(pieces, grain, name=..., ...)``.

    Raises:
        TypeError: if an argument is missing or unknown.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = body
        self.name = body.__name__
        self._kernels: dict[tuple[Hashable, ...], Kernel] = {}

    @cached_property
    def signature(self) -> Signature:
        """Parsed at first use, so that importing a kernel takes no time."""
        return Signature(self.body)

    def __call__(self, pieces: int, grain: int = 1, /, **arguments: Any) -> None:
        """Runs the work items ``range(pieces)``, on one thread if they are at most `grain`.

        `arguments` are a tensor or None for each address, an int for each integer, and the options.
        """
        signature = self.signature
        if arguments.keys() != signature.names:
            missing = sorted(signature.names - arguments.keys())
            unknown = sorted(arguments.keys() - signature.names)
            raise TypeError(f"kernel {self.name}: missing {missing}, not among its arguments {unknown}")
        kernel = self.kernel(*[arguments[name] for name in signature.options])
        tensors = [arguments[name] for name in signature.addresses]
        addresses = [0 if tensor is None else address_of(tensor) for tensor in tensors]
        integers = [arguments[name] for name in signature.integers]
        run(kernel.address, pieces, pack_arguments(addresses + integers), grain)

    def source(self, **options: Hashable) -> str:
        """The LLVM IR of the kernel for these options."""
        code, signature = Code(), self.signature
        arguments = code.arguments({**signature.addresses, **dict.fromkeys(signature.integers, LONG)})
        for name, group in signature.groups.items():
            arguments[name] = group(**{integer: arguments.pop(integer) for integer in group.__annotations__})
        self.body(code, code.begin, code.end, **arguments, **options)
        return module(code.kernel(self.name))

    def kernel(self, *options: Hashable) -> Kernel:
        """The compiled kernel for these values of its options."""
        if options not in self._kernels:
            text = self.source(**dict(zip(self.signature.options, options, strict=True)))
            self._kernels[options] = assemble(text, self.name)
        return self._kernels[options]


kernel = Launcher
"""Decorator of the `body` of a kernel."""
