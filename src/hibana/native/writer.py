"""Lines of LLVM's language: the statements that every kernel is made of, whoever writes it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Writer", "named"]


def named(name: str, sign: str = "%") -> str:
    """`name` as LLVM writes it: a state may be called by any word of Python, in any alphabet."""
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return f"{sign}{name}"
    return sign + '"' + "".join(f"\\{byte:02X}" for byte in name.encode()) + '"'


class Writer:
    """Lines of one function."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.count = 0

    def do(self, line: str) -> None:
        """Adds a line."""
        self.lines.append("  " * self.depth + line)

    def let(self, name: str, said: str) -> str:
        """Gives what `said` computes a name, and returns it; one of its own if `name` is empty."""
        if not name:
            self.count += 1
            name = f"a{self.count}"
        self.do(f"{named(name)} = {said}")
        return named(name)

    def row(self, name: str, kind: str, base: str, index: str) -> str:
        """The address of element `index` of what is at `base`."""
        return self.let(name, f"getelementptr {kind}, ptr {base}, i64 {index}")

    @contextmanager
    def loop(self, name: str, first: str, last: str, step: int | str = 1) -> Iterator[str]:
        """The lines written meanwhile, for `name` from `first` while it is less than `last`."""
        self.do(f"br label %{name}.enter")
        self.label(f"{name}.enter")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.test")
        self.do(f"%{name} = phi i64 [ {first}, %{name}.enter ], [ %{name}.next, %{name}.again ]")
        self.do(f"%{name}.more = icmp slt i64 %{name}, {last}")
        self.do(f"br i1 %{name}.more, label %{name}.body, label %{name}.done")
        self.label(f"{name}.body")
        self.depth += 1
        yield f"%{name}"
        self.depth -= 1
        self.do(f"br label %{name}.again")
        self.label(f"{name}.again")
        self.do(f"%{name}.next = add i64 %{name}, {step}")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.done")

    @contextmanager
    def when(self, name: str, condition: str) -> Iterator[None]:
        """The lines written meanwhile, if `condition` holds."""
        self.do(f"br i1 {condition}, label %{name}.so, label %{name}.done")
        self.label(f"{name}.so")
        self.depth += 1
        yield
        self.depth -= 1
        self.do(f"br label %{name}.done")
        self.label(f"{name}.done")

    @contextmanager
    def until_zero(self, name: str, kind: str, place: str) -> Iterator[str]:
        """The lines written meanwhile, while the word at `place` is not zero; its lowest bit is cleared."""
        self.do(f"br label %{name}.test")
        self.label(f"{name}.test")
        word = self.let(f"{name}.word", f"load {kind}, ptr {place}")
        more = self.let(f"{name}.more", f"icmp ne {kind} {word}, 0")
        self.do(f"br i1 {more}, label %{name}.body, label %{name}.done")
        self.label(f"{name}.body")
        self.depth += 1
        yield word
        self.depth -= 1
        less = self.let(f"{name}.less", f"sub {kind} {word}, 1")
        self.do(f"store {kind} {self.let(f'{name}.rest', f'and {kind} {word}, {less}')}, ptr {place}")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.done")

    def label(self, name: str) -> None:
        """Begins a block called `name`, which a branch may lead to."""
        self.lines.append(f"{'  ' * (self.depth - 1)}{name}:")
