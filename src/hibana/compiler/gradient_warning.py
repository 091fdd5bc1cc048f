"""The warning about a cell that passes no gradient on, at its first call with one."""

import warnings
from typing import Any
from weakref import WeakSet

from torch import Tensor

from hibana.cells import Cell

__all__ = ["NO_DERIVATIVE", "NetworkWarning", "has_derivative", "warn_without_derivative"]


class NetworkWarning(RuntimeWarning):
    """A network that can't learn, or whose numbers are not what a function needs."""


NO_DERIVATIVE = (
    "the step compares without a derivative; let it spike by hb.Heaviside.apply(v - threshold) "
    "or by a surrogate, such as hb.surrogate.ATan()(v - threshold)"
)
_CHECKED: "WeakSet[Cell]" = WeakSet()
"""The cells whose first call was checked, also as part of another cell."""


def has_derivative(outputs: Tensor) -> bool:
    """Whether a gradient of `outputs`, which a cell emitted, can reach its inputs."""
    from hibana.compiler.graph.plan import passes_gradient  # loaded with the first step that is compiled

    node: Any = outputs.grad_fn
    if node is not None and node.name() == "ToCopyBackward0":  # of half precision
        node = node.next_functions[0][0]
    compiled = getattr(node, "specification", None)
    return node is not None if compiled is None else passes_gradient(compiled.program.step)


def warn_without_derivative(cell: Cell, outputs: Tensor) -> None:
    """Warns at the first call of `cell` that needs the gradient of its inputs and has none."""
    inner = cell._modules.get("cell")  # of a cell that was made around another, perhaps for this call
    checked = inner if isinstance(inner, Cell) else cell
    if checked in _CHECKED:
        return
    _CHECKED.add(checked)
    if not has_derivative(outputs):
        text = f"{type(checked).__name__} passes no gradient on: {NO_DERIVATIVE}"
        warnings.warn(text, NetworkWarning, stacklevel=2)
