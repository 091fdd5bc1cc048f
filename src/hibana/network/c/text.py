"""Lines of C: blocks, loops, and arrays of constants."""

import re
from collections.abc import Iterable

from torch import Tensor

from hibana.compiler.c.source import literal

__all__ = ["array", "block", "commented", "each", "number_text"]


def block(head: str, lines: Iterable[str]) -> list[str]:
    """`lines` in braces after `head`."""
    return [f"{head} {{".lstrip(), *(f"    {line}" for line in lines), "}"]


def each(index: str, count: int | str, lines: Iterable[str]) -> list[str]:
    """`lines` for each `index` from 0 to below `count`."""
    return block(f"for (size_t {index} = 0; {index} < {count}; {index}++)", lines)


def commented(text: str) -> str:
    """`text` as it may stand in a comment."""
    plain = re.sub(r"[^ -~]", "?", text).replace("\\", "/")
    return re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", r"\g<0> ", plain)  # the ends of comments, and trigraphs


def number_text(values: Tensor, kind: str) -> list[str]:
    """The numbers of a tensor as literals of C's type `kind`."""
    flat = values.detach().cpu().flatten().tolist()
    if kind in ("float", "double"):
        return [literal(float(number), kind).strip("()") for number in flat]
    return [str(int(number)) for number in flat]


def array(name: str, kind: str, values: Tensor) -> list[str]:
    """A constant array with the numbers of `values`, and their shape in a comment."""
    shape = "".join(f"[{side}]" for side in values.shape) if values.ndim > 1 else ""
    numbers = number_text(values, kind)
    width, longest = values.shape[-1], max(map(len, numbers), default=0)
    fitting = max(1, 104 // (longest + 2))
    rows = (numbers[at : at + width] for at in range(0, len(numbers), width))
    lines = [f"    {', '.join(row[at : at + fitting])}," for row in rows for at in range(0, width, fitting)]
    return [f"static const {kind} {name}[{len(numbers)}] = {{{shape and f' /* {shape} */'}", *lines, "};"]
