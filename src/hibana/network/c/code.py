"""Lines of C: blocks, comments and constant arrays."""

import re
from collections.abc import Iterable

from torch import Tensor

from hibana.compiler.c.source import literal

__all__ = ["array", "block", "comment_text"]


def block(head: str, lines: Iterable[str]) -> list[str]:
    """`lines` in braces after `head`."""
    return [f"{head} {{".lstrip(), *(f"    {line}" for line in lines), "}"]


def comment_text(text: str) -> str:
    """`text` without the characters that would end a comment of C or form a trigraph."""
    plain = re.sub(r"[^ -~]", "?", text).replace("\\", "/")
    return re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", r"\g<0> ", plain)


def array(name: str, kind: str, values: Tensor, qualifiers: str = "const") -> list[str]:
    """An array of C's type `kind` with the numbers of `values`, and their shape in a comment."""
    shape = "".join(f"[{side}]" for side in values.shape) if values.ndim > 1 else ""
    flat = values.detach().cpu().flatten().tolist()
    numbers = [literal(n, kind).strip("()") for n in flat]
    width, longest = values.shape[-1], max(map(len, numbers), default=0)
    per_line = max(1, 104 // (longest + 2))
    rows = (numbers[start : start + width] for start in range(0, len(numbers), width))
    parts = (row[start : start + per_line] for row in rows for start in range(0, width, per_line))
    lines = [f"    {', '.join(part)}," for part in parts]
    return [
        f"static {qualifiers} {kind} {name}[{len(numbers)}] = {{{shape and f' /* {shape} */'}",
        *lines,
        "};",
    ]
