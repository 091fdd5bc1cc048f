"""Lines of LLVM's language: the statements that every kernel is made of, whoever writes it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Writer", "named"]

_INTEGERS = "add sub mul shl lshr ashr and or xor icmp trunc zext sext ptrtoint inttoptr getelementptr"
_FLOATS = "fadd fsub fmul fneg fcmp"
PURE = frozenset(f"{_INTEGERS} {_FLOATS} bitcast select insertelement shufflevector".split())
"""Instructions that may be done where nobody asks for what they give: they read no memory, and none fails."""
_OPERAND = re.compile(r'%(?:[\w.-]+|"[^"]*")', re.ASCII)


def named(name: str, sign: str = "%") -> str:
    """`name` as LLVM writes it: a state may be called by any word of Python, in any alphabet."""
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return f"{sign}{name}"
    return sign + '"' + "".join(f"\\{byte:02X}" for byte in name.encode()) + '"'


class Writer:
    """Lines of one function.

    What a pure instruction computes of values from outside a loop is written before the loop: loop-invariant
    code motion, while the lines are written.
    """

    def __init__(self) -> None:
        self.depth = 1
        self.count = 0
        self._lines: list[str | list[str]] = []
        self._before: list[list[str]] = []
        """Of each loop that is being written, from the outermost: the lines before it."""
        self._inside: dict[str, int] = {}
        """In how many of these a value is computed."""

    @property
    def lines(self) -> list[str]:
        """All of them."""
        return [line for some in self._lines for line in ([some] if isinstance(some, str) else some)]

    def do(self, line: str) -> None:
        """Adds a line."""
        self._lines.append("  " * self.depth + line)

    def let(self, name: str, said: str) -> str:
        """Gives what `said` computes a name, and returns it; one of its own if `name` is empty."""
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
        """Begins a block called `name`, which a branch may lead to."""
        self._lines.append(f"{'  ' * (self.depth - 1)}{name}:")

    @contextmanager
    def loop(self) -> Iterator[None]:
        """What is written meanwhile is done again and again: first the branch to where it begins."""
        before = list[str]()
        self._lines.append(before)
        self._before.append(before)
        yield
        self._before.pop()
