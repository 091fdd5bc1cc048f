"""Prints the statements of one function as LLVM IR, line by line, while they are added.

Values and pointers are identified by their text. A subclass prints the same statements in another language:
it overrides the public methods of the first half, which are all that loops over single numbers need.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from hibana.runtime.types import Type

_INTEGERS = "add sub mul shl lshr ashr and or xor icmp trunc zext sext ptrtoint inttoptr getelementptr"
_FLOATS = "fadd fsub fmul fneg fcmp"
PURE = frozenset(f"{_INTEGERS} {_FLOATS} bitcast select insertelement shufflevector".split())
"""Instructions that are safe to hoist out of a loop: they read no memory and cannot fail."""
_OPERAND = re.compile(r'%(?:[\w.-]+|"[^"]*")', re.ASCII)


def named(name: str, sign: str = "%") -> str:
    """`name` as an LLVM identifier, quoted if it has characters beyond ASCII: a cell may name a state so."""
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return f"{sign}{name}"
    return sign + '"' + "".join(f"\\{byte:02X}" for byte in name.encode()) + '"'


class Writer:
    """The lines of one function, with loop-invariant code motion as they are added.

    A pure instruction whose operands are all defined outside the current loop is written before that loop.
    """

    def __init__(self) -> None:
        self.depth = 1
        self.count = 0
        self.variables: list[str] = []
        """Allocations on the stack, which belong at the beginning of the function."""
        self._names = 0
        self._lines: list[str | list[str]] = []
        self._before: list[list[str]] = []
        """For each open loop, outermost first: the lines hoisted before it."""
        self._inside: dict[str, int] = {}
        """For each value: the number of open loops that its definition is inside of."""

    def constant(self, type_: Type, number: float) -> str:
        """The constant `number`, in each lane of `type_`."""
        if type_.real:
            if type_.bits == 32:
                (number,) = struct.unpack("<f", struct.pack("<f", number))
            exact = abs(number) < 1 << 24 and number == int(number)
            text = f"{number:.1f}" if exact else f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
        elif type_.bits == 1:
            text = "true" if number else "false"
        else:
            text = str(int(number))
        return text if type_.width == 1 else f"splat ({type_.element} {text})"

    def name(self, type_: Type | None, text: str, name: str) -> str:
        """A value of `type_`, or an address, as a constant called `name`: LLVM's values all are."""
        return text

    def binary(self, name: str, type_: Type, one: str, other: str) -> str:
        """The result of LLVM's instruction `name` on two values of `type_`: ``fadd``, ``icmp slt``, ..."""
        return self.let("", f"{name} {type_} {one}, {other}")

    def select(self, kind: Type, condition: str, type_: Type, yes: str, no: str) -> str:
        """`yes` where `condition` is true, `no` elsewhere."""
        return self.let("", f"select {kind} {condition}, {type_} {yes}, {type_} {no}")

    def convert(self, how: str, from_: Type, to: Type, text: str) -> str:
        """A value of the type `from_` as one of the type `to`: ``zext``, ``trunc``, ``sitofp``, ..."""
        return self.let("", f"{how} {from_} {text} to {to}")

    def offset(self, element: Type, pointer: str, count: str) -> str:
        """The address `count` elements after `pointer`."""
        return self.let("", f"getelementptr {element.element}, ptr {pointer}, i64 {count}")

    def load(self, type_: Type, pointer: str, how: str) -> str:
        """The value at an address, or of a variable; `how` is LLVM's alignment."""
        return self.let("", f"load {type_}, ptr {pointer}{how}")

    def store(self, type_: Type, value: str, pointer: str, how: str) -> None:
        """Writes `value` to an address or a variable."""
        self.do(f"store {type_} {value}, ptr {pointer}{how}")

    def clear(self, pointer: str, size: int, count: str, byte: int) -> None:
        """Sets the bytes of `count` elements of `size` bytes."""
        given = f"i8 {byte}, i64 {self._bytes(count, size)}, i1 false"
        self.do(f"call void @llvm.memset.p0.i64(ptr {pointer}, {given})")

    def copy(self, target: str, source: str, size: int, count: str) -> None:
        """Copies `count` elements of `size` bytes between arrays that do not overlap."""
        given = f"ptr {target}, ptr {source}, i64 {self._bytes(count, size)}, i1 false"
        self.do(f"call void @llvm.memcpy.p0.p0.i64({given})")

    def variable(self, type_: Type, value: str) -> str:
        """A new variable, initialised with `value`."""
        name = self.allocate("v", str(type_))
        self.store(type_, value, name, "")
        return name

    @contextmanager
    def loop(self, first: str, last: str, by: str, name: str) -> Iterator[str]:
        """A loop from `first` to below `last`; yields its index."""
        name = self.fresh("i")
        self.begin(f"{name}.enter")
        with self.region():
            self.begin(f"{name}.test")
            i = self.let(name, f"phi i64 [ {first}, %{name}.enter ], [ %{name}.next, %{name}.again ]")
            self.let(f"{name}.more", f"icmp slt i64 {i}, {last}")
            with self.inside(name, f"%{name}.more"):
                yield i
            self.begin(f"{name}.again")
            self.let(f"{name}.next", f"add i64 {i}, {by}")
            self.do(f"br label %{name}.test")
        self.label(f"{name}.done")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """A branch that is taken if `condition` is true."""
        name = self.fresh("w")
        with self.inside(name, condition):
            yield
        self.begin(f"{name}.done")

    def allocate(self, kind: str, type_: str) -> str:
        """A new variable or array on the stack."""
        name = f"%{self.fresh(kind)}"
        self.variables.append(f"  {name} = alloca {type_}")
        return name

    def begin(self, block: str) -> None:
        """Ends the current basic block with a branch to a new one."""
        self.do(f"br label %{block}")
        self.label(block)

    @contextmanager
    def inside(self, name: str, condition: str) -> Iterator[None]:
        """A block that is entered if `condition` is true; otherwise control goes to ``NAME.done``."""
        self.do(f"br i1 {condition}, label %{name}.body, label %{name}.done")
        self.label(f"{name}.body")
        self.depth += 1
        yield
        self.depth -= 1

    def fresh(self, kind: str) -> str:
        """A new name of a variable or block."""
        self._names += 1
        return f"{kind}{self._names}"

    def _bytes(self, count: str, size: int) -> str:
        return str(int(count) * size) if count[0] != "%" else self.let("", f"mul i64 {count}, {size}")

    @property
    def lines(self) -> list[str]:
        """All lines, hoisted ones in place."""
        return [line for some in self._lines for line in ([some] if isinstance(some, str) else some)]

    def do(self, line: str) -> None:
        """Appends a line."""
        self._lines.append("  " * self.depth + line)

    def let(self, name: str, said: str) -> str:
        """Writes ``name = said`` and returns the identifier; a fresh one if `name` is empty."""
        if not name:
            self.count += 1
            name = f"a{self.count}"
        text = named(name)
        inside = len(self._before)
        if inside and said.partition(" ")[0] in PURE:
            inside = min(inside, max([self._inside.get(one, 0) for one in _OPERAND.findall(said)], default=0))
        if inside < len(self._before):
            self._before[inside].append(f"  {text} = {said}")
        else:
            self.do(f"{text} = {said}")
        self._inside[text] = inside
        return text

    def label(self, name: str) -> None:
        """Begins a basic block called `name`."""
        self._lines.append(f"{'  ' * (self.depth - 1)}{name}:")

    @contextmanager
    def region(self) -> Iterator[None]:
        """Marks the lines written in the ``with`` block as the body of a loop."""
        before = list[str]()
        self._lines.append(before)
        self._before.append(before)
        yield
        self._before.pop()
