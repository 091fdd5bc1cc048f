"""The LLVM IR of one function, as a list of lines. What the instructions mean is not known here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

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
        self._lines: list[str | list[str]] = []
        self._before: list[list[str]] = []
        """For each open loop, outermost first: the lines hoisted before it."""
        self._inside: dict[str, int] = {}
        """For each value: the number of open loops that its definition is inside of."""

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
    def loop(self) -> Iterator[None]:
        """Marks the lines written in the ``with`` block as the body of a loop."""
        before = list[str]()
        self._lines.append(before)
        self._before.append(before)
        yield
        self._before.pop()
