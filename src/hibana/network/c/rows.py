"""A linear layer in C: rows of weights added several at a time, in floats in their order.

Sums are read and written once for all rows of a call, in loops of constant length over arrays that do not
overlap, of which compilers make vectors.
"""

from dataclasses import dataclass

from hibana.network.c.memory import SIZES
from hibana.network.c.text import block, each

__all__ = ["Active", "Rows"]


@dataclass(frozen=True)
class Active:
    """A loop over the places ``i`` of what is not zero, with its value ``x`` where it is not 1."""

    head: str
    begins: tuple[str, ...]
    valued: bool
    array: str = ""
    """What lies in an array: the places that spiked, or the numbers;"""
    count: str = ""
    """how many there are;"""
    kind: str = ""
    """and C's type of them."""


@dataclass(frozen=True)
class Rows:
    """The sums of a linear layer: rows of an array of weights, times numbers or for spikes."""

    name: str
    """Of the function that adds rows."""
    weights: str
    of: str
    """C's type of a weight."""
    kind: str
    """And of a sum."""
    size: int
    out: str
    inputs: int

    def function(self, over: Active) -> list[str]:
        """A function that adds several rows at once, if they are."""
        if not self._merged(over):
            return []
        rows = "ab" if over.valued else "abcd"
        times = f"{self._factor(over)} x, {self._factor(over)} y, " if over.valued else ""
        given = ", ".join(f"const {self.of} *restrict {row}" for row in rows)
        added = [f"{row}[o]" for row in rows]
        if over.valued:
            cast = "(int16_t)" if self._of_bytes(over) else ""
            added = [f"{cast}({factor} * {row})" for factor, row in zip("xy", added, strict=True)]
        total = " + ".join(["out[o]", *added])
        if self.whole:  # in any order: the sum of a few bytes fits in 16 bits
            total = f"out[o] + ({' + '.join(added)})"
        head = f"static void {self.name}({self.kind} *restrict out, {times}{given})"
        return block(head, each("o", self.size, [f"out[o] = {total};"]))

    def lines(self, over: Active) -> list[str]:
        """What adds a row for each of `over` to the sums."""
        if self._merged(over):
            return self._pairs(over) if over.valued else self._fours(over)
        times = "x * " if over.valued else ""
        return block(over.head, [*over.begins, *self._row(f"{times}{self.weights}[i][o]")])

    def _merged(self, over: Active) -> bool:
        """Whether rows are added together: where there are as many, and a list holds nothing but places."""
        return bool(over.array) and self.inputs >= (2 if over.valued else 4)

    def _fours(self, over: Active) -> list[str]:
        rows = [f"{self.weights}[{over.array}[{at}]]" for at in ("k", "k + 1", "k + 2", "k + 3")]
        return [
            "size_t k = 0;",
            f"for (; k + 4 <= {over.count}; k += 4)",
            f"    {self.name}({self.out}, {', '.join(rows)});",
            *block(f"for (; k < {over.count}; k++)", [*over.begins, *self._row(f"{self.weights}[i][o]")]),
        ]

    def _pairs(self, over: Active) -> list[str]:
        cast = f"({self._factor(over)})" if self._of_bytes(over) else ""
        values = f"{cast}{over.array}[before], {cast}x"
        begun = block("if (before == SIZE_MAX)", ["before = i;", "continue;"])
        call = f"{self.name}({self.out}, {values}, {self.weights}[before], {self.weights}[i]);"
        last = f"const {over.kind} x = {over.array}[before];"
        return [
            "size_t before = SIZE_MAX;",
            *block(over.head, [*over.begins, *begun, call, "before = SIZE_MAX;"]),
            *block("if (before != SIZE_MAX)", [last, *self._row(f"x * {self.weights}[before][o]")]),
        ]

    def _row(self, added: str) -> list[str]:
        return each("o", self.size, [f"{self.out}[o] += {added};"])

    @property
    def whole(self) -> bool:
        """Whether sums are of whole numbers, and the same in any order."""
        return self.kind == "int32_t"

    def _of_bytes(self, over: Active) -> bool:
        """Whether products are of two bytes, and so of 16 bits, of which more are computed at once."""
        return self.whole and SIZES[self.of] == SIZES[over.kind] == 1

    def _factor(self, over: Active) -> str:
        return "int16_t" if self._of_bytes(over) else over.kind
