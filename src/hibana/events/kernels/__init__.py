"""Kernels as source text: built one by one, at the width of row that a layer needs, when first used.

The files beside this one are written in Numba's dialect and never imported; :func:`address` hands their
text to :mod:`hibana.native`.
"""

import ast
from functools import cache
from pathlib import Path

from hibana.native.build import build

__all__ = ["address", "compresses", "panel"]

_HERE = Path(__file__).parent


def panel(outputs: int) -> int:
    """How many outputs a row of packed weights holds, for a layer of so many."""
    return 16 if outputs <= 16 else 32 if outputs <= 32 else 64


@cache
def compresses() -> bool:
    """Whether one instruction of this CPU puts chosen elements of a vector together.

    With it, listing spikes costs little, and adding them one by one pays up to a higher share of them.
    """
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512vbmi2"))


@cache
def address(room: str, name: str, row: int) -> int:
    """The address of the kernel `name` of the file `room`, for rows of `row` floats."""
    own = _without_imports_between((_HERE / f"{room}.py").read_text(), name)
    (kernel,) = build(own, (name,), _lanes(row))
    _KEPT.append(kernel)
    return kernel.address


_KEPT: list[object] = []


@cache
def _lanes(row: int) -> str:
    """What all kernels for rows of `row` floats share."""
    text = _without_imports_between((_HERE / "lanes.py").read_text(), None)
    text = text.replace("VECTORS = 4\n", f"VECTORS = {row // 16}\n", 1)
    return text.replace("COMPRESSES = False\n", f"COMPRESSES = {compresses()}\n", 1)


def _without_imports_between(text: str, wanted: str | None) -> str:
    """`text` less what joins these files, and less every kernel but the wanted one."""
    kept = []
    for node in ast.parse(text).body:
        joins = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hibana.events")
        if not joins and not (_is_kernel(node) and getattr(node, "name", None) != wanted):
            kept.append(ast.unparse(node))
    return "\n\n".join(kept) + "\n"


def _is_kernel(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(d, ast.Name) and d.id == "kernel" for d in node.decorator_list
    )
