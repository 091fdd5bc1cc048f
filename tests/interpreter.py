"""Runs the statements of :mod:`hibana.runtime.loops` one by one on NumPy numbers, and checks each access.

Memory consists of regions of bytes at invented addresses. A load or store that is not inside of one region
raises an IndexError. :func:`checked` runs each kernel a second time, in the interpreter, and compares all
numbers that it wrote.
"""

import math
from contextlib import contextmanager
from fractions import Fraction
from unittest import mock

import numpy
import torch

from hibana.runtime import loops
from hibana.runtime.code import Code
from hibana.runtime.kernels import LONG
from hibana.runtime.launcher import Launcher

INTEGERS = {8: numpy.int8, 16: numpy.int16, 32: numpy.int32, 64: numpy.int64}
REALS = {32: numpy.float32, 64: numpy.float64}
SPACING, MIDDLE = 1 << 40, 1 << 39


def dtype_of(type_):
    """The NumPy type of a number of `type_`; an address is an integer."""
    bits = 64 if type_ is None else type_.bits
    if bits == 1:
        return numpy.dtype(numpy.bool_)
    types = REALS if type_ is not None and type_.real else INTEGERS
    return numpy.dtype(next(dtype for width, dtype in types.items() if width >= bits))


class Memory:
    """Regions of bytes; region n begins at address ``n SPACING + MIDDLE``."""

    def __init__(self):
        self.regions = [numpy.zeros(0, numpy.uint8)]  # the null pointer is in none

    def add(self, octets):
        """Adds a region with the bytes `octets`, which it shares, and returns its address."""
        self.regions.append(octets)
        return (len(self.regions) - 1) * SPACING + MIDDLE

    def at(self, address, dtype, count=1):
        """A writable view of `count` numbers at `address`."""
        region, size = int(address) // SPACING, dtype.itemsize * count
        start = int(address) - region * SPACING - MIDDLE
        octets = self.regions[region] if 0 < region < len(self.regions) else self.regions[0]
        if start < 0 or start + size > len(octets):
            raise IndexError(f"bytes {start} to {start + size} of a region of {len(octets)} bytes")
        return octets[start : start + size].view(dtype)


def _unsigned(x):
    return x.view(f"u{x.dtype.itemsize}") if x.dtype != bool else x


def _fused(x, y, z):
    """``x y + z``, rounded once."""
    if not all(map(math.isfinite, map(float, (x, y, z)))):
        return x * y + z
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    return x.dtype.type(float(exact) if exact else x * y + z)


def _each(function):
    return lambda *vectors: numpy.array(
        [function(*lanes) for lanes in zip(*map(numpy.atleast_1d, vectors), strict=True)], vectors[0].dtype
    ).reshape(vectors[0].shape)


def _bits(x):
    return x.dtype.itemsize * 8


def _rotated(high, low, by):
    """LLVM's ``fshl``: the high half of both words, shifted to the left."""
    width, by = _bits(high), int(by) % _bits(high)
    word = (int(high) % (1 << width) << width | int(low) % (1 << width)) << by
    word = word >> width & (1 << width) - 1
    return word - (1 << width) if word >> width - 1 else word


def _compressed(x, mask, other):
    result = other.copy()
    result[: mask.sum()] = x[mask]
    return result


COMPARISONS = {
    "lt": numpy.less,
    "le": numpy.less_equal,
    "gt": numpy.greater,
    "ge": numpy.greater_equal,
    "eq": numpy.equal,
    "ne": numpy.not_equal,
}
FUNCTIONS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "neg": lambda x: -x,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "shl": lambda x, y: numpy.where(_unsigned(y) < _bits(x), x << y, 0).astype(x.dtype),
    "shr": lambda x, y: (_unsigned(x) >> _unsigned(y)).view(x.dtype),
    "select": lambda condition, x, y: numpy.where(condition, x, y).astype(x.dtype),
    "fabs": abs,
    "sqrt": numpy.sqrt,
    "floor": numpy.floor,
    "ceil": numpy.ceil,
    "trunc": numpy.trunc,
    "roundeven": numpy.rint,
    "copysign": numpy.copysign,
    "fma": _each(_fused),
    "fmuladd": _each(_fused),
    "ctpop": _each(lambda x: int(_unsigned(x)).bit_count()),
    "cttz": lambda x, _: _each(lambda n: (int(n) & -int(n)).bit_length() - 1 if n else _bits(n))(x),
    "fshl": _each(_rotated),
    "experimental.vector.compress": _compressed,
}
LIBRARY = {"sqrt": numpy.sqrt, "exp": numpy.exp, "expm1": numpy.expm1, "log1p": numpy.log1p}


class Interpreter:
    """Runs functions in a memory."""

    def __init__(self, memory):
        self.memory = memory

    def call(self, definition, arguments):
        """Runs a function, and returns its result or None."""
        values = dict(zip(definition.parameters, arguments, strict=True))
        self.run(definition.body, values)
        return None if definition.result is None else self.of(definition.result, values)

    def of(self, operand, values):
        """The value of an operand: a NumPy scalar, or an array with a number for each lane."""
        match operand:
            case loops.Constant(type_, number):
                integer = not type_.real and type_.bits > 1
                wrapped = (int(number) + (1 << type_.bits - 1)) % (1 << type_.bits) - (1 << type_.bits - 1)
                one = dtype_of(type_).type(wrapped if integer else number)
                return one if type_.width == 1 else numpy.full(type_.width, one)
            case loops.Lanes(type_):
                return numpy.arange(type_.width, dtype=dtype_of(type_))
            case loops.Undefined(type_):
                return numpy.full(type_.width, 77, dtype_of(type_))
        return values[operand]

    def run(self, body, values):
        """Runs statements; `values` holds the results and the variables."""
        of = lambda operand: self.of(operand, values)  # noqa: E731
        at = self.memory.at
        for statement in body:
            match statement:
                case loops.Let(result, operation, operands, lanes):
                    values[result] = self.operation(operation, [of(x) for x in operands], result.type, lanes)
                case loops.Offset(result, element, address, count):
                    values[result] = of(address) + numpy.int64(element.size) * of(count)
                case loops.Name(result, value):
                    values[result] = of(value)
                case loops.Load(result, address, align):
                    assert of(address) % min(align, 8) == 0
                    values[result] = self._read(of(address), result.type)
                case loops.MaskedLoad(result, address, _, mask, other):
                    loaded = of(other).copy()
                    for lane in numpy.flatnonzero(of(mask)):
                        loaded[lane] = at(of(address) + lane * loaded.itemsize, loaded.dtype)[0]
                    values[result] = loaded
                case loops.Gather(result, element, address, indices, mask, other):
                    loaded = of(other).copy()
                    for lane in numpy.flatnonzero(of(mask)):
                        place = of(address) + numpy.int64(of(indices)[lane]) * element.size
                        loaded[lane] = at(place, loaded.dtype)[0]
                    values[result] = loaded
                case loops.Store(address, value):
                    number = numpy.atleast_1d(of(value))
                    at(of(address), number.dtype, len(number))[:] = number
                case loops.MaskedStore(address, value, _, mask):
                    number = of(value)
                    for lane in numpy.flatnonzero(of(mask)):
                        at(of(address) + lane * number.itemsize, number.dtype)[:] = number[lane]
                case loops.Define(variable, value) | loops.Assign(variable, value):
                    values[variable] = of(value)
                case loops.Read(result, variable):
                    values[result] = values[variable]
                case loops.Allocate(result, element, count):
                    values[result] = self.memory.add(numpy.full(count * element.size, 77, numpy.uint8))
                case loops.Fill(address, size, count, byte):
                    at(of(address), numpy.dtype(numpy.uint8), int(of(count)) * size)[:] = byte
                case loops.Copy(target, source, size, count):
                    octets = numpy.dtype(numpy.uint8), int(of(count)) * size
                    at(of(target), *octets)[:] = at(of(source), *octets)
                case loops.AtomicAdd(result, address, value):
                    place = at(of(address), dtype_of(result.type))
                    values[result] = place[0]
                    place[0] += of(value)
                case loops.AtomicLoad(result, address):
                    values[result] = self._read(of(address), result.type)
                case loops.Call(result, loops.Definition() as function, arguments):
                    values[result] = self.call(function, [of(x) for x in arguments])
                case loops.Call(result, loops.Declaration(name), arguments):
                    values[result] = LIBRARY[name](*[of(x) for x in arguments])
                case loops.For(index, start, stop, step, inner):
                    for i in range(int(of(start)), int(of(stop)), int(of(step))):
                        values[index] = numpy.int64(i)
                        self.run(inner, values)
                case loops.If(condition, inner):
                    if of(condition):
                        self.run(inner, values)
                case loops.Repeat(inner, again):
                    self.run(inner, values)
                    while of(again):
                        self.run(inner, values)
                case loops.Scratch(result, size, inner):
                    values[result] = self.memory.add(numpy.full(int(of(size)), 77, numpy.uint8))
                    self.run(inner, values)
                case loops.Fence() | loops.Prefetch():
                    pass
                case _:
                    raise TypeError(f"the interpreter has no form of {statement}")

    def _read(self, address, type_):
        """The number or vector of `type_` at `address`."""
        width = 1 if type_ is None else type_.width
        numbers = self.memory.at(address, dtype_of(type_), width).copy()
        return numbers[0] if width == 1 else numbers

    def operation(self, name, operands, type_, lanes):
        """The result of an operation."""
        first, dtype = operands[0], dtype_of(type_)
        with numpy.errstate(all="ignore"):
            if name in COMPARISONS:
                return COMPARISONS[name](*operands)
            if name in ("div", "rem"):
                if first.dtype.kind == "f":
                    return first / operands[1] if name == "div" else numpy.fmod(first, operands[1])
                x, y = map(_unsigned, operands)
                assert numpy.all(y != 0), "division by zero"
                return (x // y if name == "div" else x % y).astype(x.dtype).view(first.dtype)
            if name in ("extend", "shorten") and first.dtype.kind != "f":
                wide = numpy.asarray(_unsigned(first) if first.dtype != bool else first.astype(numpy.uint8))
                return wide.astype(numpy.uint64).astype(f"u{dtype.itemsize}").view(dtype)[()]
            if name in ("extend", "shorten", "extend signed", "real", "address", "pointer"):
                return first.astype(dtype) if hasattr(first, "astype") else dtype.type(first)
            if name == "bits":
                return self._reinterpreted(first, type_, dtype)
            if name == "exists":
                return numpy.bool_(first != 0)
            if name == "spread":
                return numpy.full(len(lanes), first)
            if name == "shuffle":
                return numpy.concatenate(operands)[list(lanes)]
            if name == "extract":
                return first[lanes[0]]
            if name == "insert":
                changed = first.copy()
                changed[lanes[0]] = operands[1]
                return changed
            if name == "sum":
                return first.sum(dtype=first.dtype)
            return FUNCTIONS[name](*operands)

    def _reinterpreted(self, x, type_, dtype):
        """The bits of `x` as another type; lane 0 has the lowest bits."""
        octets = numpy.atleast_1d(x)
        is_mask = octets.dtype.kind == "b"
        octets = numpy.packbits(octets, bitorder="little") if is_mask else octets.view(numpy.uint8)
        if dtype.kind == "b":
            return numpy.unpackbits(octets, count=type_.width, bitorder="little").astype(bool)
        result = octets.view(dtype)
        return result if type_.width > 1 else result[0]


def interpret(launcher, pieces, arguments):
    """Runs the work items ``range(pieces)`` of a kernel in the interpreter, on the tensors of `arguments`."""
    signature, memory = launcher.signature, Memory()
    code = Code()
    names = code.arguments({**signature.addresses, **dict.fromkeys(signature.integers, LONG)})
    for name, group in signature.groups.items():
        names[name] = group(**{integer: names.pop(integer) for integer in group.__annotations__})
    options = {name: arguments[name] for name in signature.options}
    launcher.body(code, code.begin, code.end, **names, **options)
    addresses = []
    for name in signature.addresses:
        tensor = arguments[name]
        if tensor is None:
            addresses.append(0)
            continue
        size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        octets = tensor.detach().as_strided((size if tensor.numel() else 0,), (1,)).view(torch.uint8).numpy()
        addresses.append(memory.add(octets))
    packed = numpy.array(addresses + [int(arguments[name]) for name in signature.integers], numpy.int64)
    arguments_at = memory.add(packed.view(numpy.uint8))
    Interpreter(memory).call(code.kernel(launcher.name), [numpy.int64(0), numpy.int64(pieces), arguments_at])


@contextmanager
def checked(*skipped):
    """Runs each kernel that the block launches in the interpreter too; yields the list of their names.

    Numbers may differ by rounding, since a sum of lanes has no order. Kernels whose names are `skipped` run
    once: those that call a function at an address, or write an address or an undefined number.

    Raises an AssertionError if a number that it wrote differs, and an IndexError at an access outside of its
    arrays.
    """
    launch, names = Launcher.__call__, []

    def launch_twice(launcher, pieces, grain=1, /, **arguments):
        is_checked = launcher.name not in skipped and arguments.keys() == launcher.signature.names
        tensors = {name: x for name, x in arguments.items() if is_checked and isinstance(x, torch.Tensor)}
        copies = {id(x): torch.empty_like(x).copy_(x) for x in tensors.values()}
        if is_checked:
            interpret(launcher, pieces, {name: copies.get(id(x), x) for name, x in arguments.items()})
            names.append(launcher.name)
        launch(launcher, pieces, grain, **arguments)
        for name, x in tensors.items():
            where = f"{launcher.name}: {name}"
            torch.testing.assert_close(copies[id(x)], x, rtol=2e-6, atol=1e-6, equal_nan=True, msg=where)

    with mock.patch.object(Launcher, "__call__", launch_twice):
        yield names
