"""Lines of LLVM's language: the statements that every kernel is made of, whoever writes it."""

import re

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

    def label(self, name: str) -> None:
        """Begins a block called `name`, which a branch may lead to."""
        self.lines.append(f"{'  ' * (self.depth - 1)}{name}:")
