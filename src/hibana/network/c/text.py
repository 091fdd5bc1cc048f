"""Lines of C: blocks, loops, and arrays of constants."""

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap

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
    """A constant array with the numbers and the shape of `values`."""
    sides = "".join(f"[{side}]" for side in values.shape)
    head = f"static const {kind} {name}{sides} = {{"
    return [head, *_nested(number_text(values, kind), values.shape[1:]), "};"]


def _nested(numbers: Sequence[str], inner: Sequence[int]) -> list[str]:
    if not inner:
        return _wrapped(", ".join(numbers))
    size = 1
    for side in inner:
        size *= side
    parts = [numbers[at : at + size] for at in range(0, len(numbers), size)]
    if len(inner) == 1:
        return [line for part in parts for line in _wrapped(f"{{{', '.join(part)}}},")]
    return [line for part in parts for line in ("    {", *_nested(part, inner[1:]), "    },")]


def _wrapped(text: str) -> list[str]:
    return wrap(text, 110, initial_indent="    ", subsequent_indent="    ")
