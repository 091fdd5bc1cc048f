"""Adds rows of weights several at a time: sums are read and written once for all rows of a call.

Its loops are of constant length and over arrays that do not overlap, of which compilers make vectors. Floats
are added in order.
"""

from hibana.network.c.memory import SIZES
from hibana.network.c.text import block, each

__all__ = ["merged_rows"]


def merged_rows(
    name: str,
    out: str,
    rows: str,
    read: str,
    count: str | None,
    *,
    kinds: tuple[str, str, str],
    size: int,
    inputs: int,
) -> tuple[list[str], list[str]]:
    """A function of C that adds rows, and the lines that call it for each nonzero input.

    Args:
        name: of the function.
        out: the sums.
        rows: the weights ``[inputs, size]``.
        read: the list of the inputs that are 1, or the inputs.
        count: the length of that list; None of numbers.
        kinds: the types of sums, weights and inputs.
        size: numbers of a row.
        inputs: how many there are.
    """
    kind, weight, value = kinds
    exact = kind == "int32_t"  # sums of integers are the same in any order
    short = exact and SIZES[weight] == SIZES[value] == 1  # products fit in 16 bits
    factor, cast = ("int16_t", "(int16_t)") if short else (value, "")
    names = "ab" if count is None else "abcd"
    values = f"{factor} x, {factor} y, " if count is None else ""
    given = ", ".join(f"const {weight} *restrict {row}" for row in names)
    added = [f"{row}[o]" for row in names]
    if count is None:
        added = [
            f"{cast}({x} * {row})" if short else f"({x} * {row})" for x, row in zip("xy", added, strict=True)
        ]
    total = f"out[o] + ({' + '.join(added)})" if exact else " + ".join(["out[o]", *added])
    head = f"static void {name}({kind} *restrict out, {values}{given})"
    function = block(head, each("o", size, [f"out[o] = {total};"]))
    if count is not None:
        places = ", ".join(f"{rows} + {read}[{k}] * {size}" for k in ("k", "k + 1", "k + 2", "k + 3"))
        last = each("o", size, [f"{out}[o] += row[o];"])
        return function, [
            "size_t k = 0;",
            f"for (; k + 4 <= {count}; k += 4)",
            f"    {name}({out}, {places});",
            *block(
                f"for (; k < {count}; k++)",
                [f"const {weight} *const row = {rows} + {read}[k] * {size};", *last],
            ),
        ]
    call = f"{name}({out}, {cast}{read}[before], {cast}x, {rows} + before * {size}, {rows} + i * {size});"
    pairs = [f"const {value} x = {read}[i];", "if (x == 0)", "    continue;"]
    pairs += block("if (before == SIZE_MAX)", ["before = i;", "continue;"])
    left = [f"const {value} x = {read}[before];", f"const {weight} *const row = {rows} + before * {size};"]
    return function, [
        "size_t before = SIZE_MAX;",
        *each("i", inputs, [*pairs, call, "before = SIZE_MAX;"]),
        *block("if (before != SIZE_MAX)", [*left, *each("o", size, [f"{out}[o] += x * row[o];"])]),
    ]
