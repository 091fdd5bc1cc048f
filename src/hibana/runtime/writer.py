"""Prints the statements of one function as LLVM IR while a kernel's Python code runs.

Values and pointers are identified by their text. A subclass prints the statements in another language: it
overrides the public methods from `constant` to `when`, which suffice for loops over scalars.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from hibana.runtime.types import Type

_INTEGERS = "add sub mul shl lshr ashr and or xor icmp trunc zext sext ptrtoint inttoptr getelementptr"
_FLOATS = "fadd fsub fmul fneg fcmp"
PURE = frozenset(f"{_INTEGERS} {_FLOATS} bitcast select insertelement shufflevector".split())
"""Instructions that can be moved out of a loop, because they read no memory and can't fail."""
_OPERAND = re.compile(r'%(?:[\w.-]+|"[^"]*")', re.ASCII)


def named(name: str, sign: str = "%") -> str:
    """`name` as an LLVM identifier, quoted if it has other characters than ASCII letters and digits."""
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return f"{sign}{name}"
    return sign + '"' + "".join(f"\\{byte:02X}" for byte in name.encode()) + '"'


class Writer:
    """The lines of one function, with loop-invariant code motion.

    A pure instruction whose operands are all defined outside the current loop is written before that loop.
    """

    def __init__(self) -> None:
        self.depth = 1
        self.count = 0
        self.variables: list[str] = []
        """Lines that allocate memory on the stack, for the beginning of the function."""
        self._names = 0
        self._lines: list[str | list[str]] = []
        """The lines in order; a list holds the lines before a loop, which grow while the loop is written."""
        self._lines_before_loops: list[list[str]] = []
        """For each open loop, outermost first: the lines to write before it."""
        self._loops_around: dict[str, int] = {}
        """For each value: the number of loops around its definition."""

    def constant(self, type_: Type, number: float) -> str:
        """The constant `number`, in each lane of `type_`."""
        if type_.real:
            if type_.bits == 32:
                (number,) = struct.unpack("<f", struct.pack("<f", number))
            is_short = abs(number) < 1 << 24 and number == int(number)
            text = f"{number:.1f}" if is_short else f"0x{struct.pack('>d', number).hex().upper()}"
        elif type_.bits == 1:
            text = "true" if number else "false"
        else:
            text = str(int(number))
        return text if type_.width == 1 else f"splat ({type_.element} {text})"

    def name(self, type_: Type | None, text: str, name: str) -> str:
        """`text`, a value of `type_`, or an address if None; C code stores it in a constant `name`."""
        return text

    def binary(self, name: str, type_: Type, left: str, right: str) -> str:
        """The result of LLVM's instruction `name` (``fadd``, ``icmp slt``, ...) on two values of `type_`."""
        return self.let("", f"{name} {type_} {left}, {right}")

    def select(self, kind: Type, condition: str, type_: Type, yes: str, no: str) -> str:
        """`yes` where `condition` is true, else `no`."""
        return self.let("", f"select {kind} {condition}, {type_} {yes}, {type_} {no}")

    def convert(self, instruction: str, from_: Type, to: Type, text: str) -> str:
        """The value `text` of type `from_`, converted to `to` by ``zext``, ``trunc``, ``sitofp``, ..."""
        return self.let("", f"{instruction} {from_} {text} to {to}")

    def offset(self, element: Type, pointer: str, count: str) -> str:
        """The address `count` elements after `pointer`."""
        return self.let("", f"getelementptr {element.element}, ptr {pointer}, i64 {count}")

    def load(self, type_: Type, pointer: str, options: str) -> str:
        """The value at an address, or of a variable; `options` are LLVM's, such as ``, align 4``."""
        return self.let("", f"load {type_}, ptr {pointer}{options}")

    def store(self, type_: Type, value: str, pointer: str, options: str) -> None:
        """Writes `value` to an address or a variable; `options` are LLVM's, such as ``, align 4``."""
        self.do(f"store {type_} {value}, ptr {pointer}{options}")

    def clear(self, pointer: str, size: int, count: str, byte: int) -> None:
        """Sets all bytes of `count` elements of `size` bytes to `byte`."""
        arguments = f"i8 {byte}, i64 {self._bytes(count, size)}, i1 false"
        self.do(f"call void @llvm.memset.p0.i64(ptr {pointer}, {arguments})")

    def copy(self, target: str, source: str, size: int, count: str) -> None:
        """Copies `count` elements of `size` bytes between arrays that do not overlap."""
        arguments = f"ptr {target}, ptr {source}, i64 {self._bytes(count, size)}, i1 false"
        self.do(f"call void @llvm.memcpy.p0.p0.i64({arguments})")

    def variable(self, type_: Type, value: str) -> str:
        """A new variable, initialized with `value`."""
        name = self.allocate("v", str(type_))
        self.store(type_, value, name, "")
        return name

    @contextmanager
    def loop(self, first: str, last: str, by: str, name: str) -> Iterator[str]:
        """A loop of the index from `first` to below `last` in steps of `by`; yields the index."""
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
        """A branch that runs if `condition` is true."""
        name = self.fresh("w")
        with self.inside(name, condition):
            yield
        self.begin(f"{name}.done")

    def allocate(self, kind: str, type_: str) -> str:
        """A new variable or array on the stack, whose name begins with `kind`."""
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
        """A new name of a variable or block, which begins with `kind`."""
        self._names += 1
        return f"{kind}{self._names}"

    def _bytes(self, count: str, size: int) -> str:
        """The number of bytes of `count` elements of `size` bytes."""
        return str(int(count) * size) if count[0] != "%" else self.let("", f"mul i64 {count}, {size}")

    @property
    def lines(self) -> list[str]:
        """All lines in order."""
        return [line for item in self._lines for line in ([item] if isinstance(item, str) else item)]

    def do(self, line: str) -> None:
        """Appends a line."""
        self._lines.append("  " * self.depth + line)

    def let(self, name: str, instruction: str) -> str:
        """Writes ``name = instruction`` and returns the identifier, a new one if `name` is empty."""
        if not name:
            self.count += 1
            name = f"a{self.count}"
        text = named(name)
        loops = len(self._lines_before_loops)
        if loops and instruction.partition(" ")[0] in PURE:
            operands = _OPERAND.findall(instruction)
            loops = min(loops, max([self._loops_around.get(name, 0) for name in operands], default=0))
        if loops < len(self._lines_before_loops):
            self._lines_before_loops[loops].append(f"  {text} = {instruction}")
        else:
            self.do(f"{text} = {instruction}")
        self._loops_around[text] = loops
        return text

    def label(self, name: str) -> None:
        """Begins a basic block called `name`."""
        self._lines.append(f"{'  ' * (self.depth - 1)}{name}:")

    @contextmanager
    def region(self) -> Iterator[None]:
        """Marks the lines that the ``with`` block writes as the body of a loop."""
        lines_before = list[str]()
        self._lines.append(lines_before)
        self._lines_before_loops.append(lines_before)
        yield
        self._lines_before_loops.pop()
