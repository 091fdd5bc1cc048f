"""The warning about a cell whose outputs have no gradient, at its first call that needs one."""

import warnings
from typing import Any
from weakref import WeakSet

from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.plan import passes_gradient


class NetworkWarning(RuntimeWarning):
    """A network can't learn, or its outputs do not have the form that a function needs."""


NO_DERIVATIVE = (
    "the step compares without a derivative; let it spike by hb.Heaviside.apply(v - threshold) "
    "or by a surrogate, such as hb.surrogate.ATan()(v - threshold)"
)
_CHECKED: "WeakSet[Cell]" = WeakSet()
"""The cells whose first call was checked, by itself or as a part of another cell."""


def has_derivative(outputs: Tensor) -> bool:
    """Whether a gradient of `outputs`, the outputs of a cell, can reach its inputs."""
    node: Any = outputs.grad_fn
    if node is not None and node.name() == "ToCopyBackward0":  # to half precision
        node = node.next_functions[0][0]
    compiled = getattr(node, "specification", None)
    return node is not None if compiled is None else passes_gradient(compiled.kernels.step)


def warn_without_derivative(cell: Cell, outputs: Tensor) -> None:
    """Warns at the first call of `cell` that needs the gradient of its inputs, if `outputs` have none."""
    inner = cell._modules.get("cell")  # a wrapper of a cell may exist for this call only
    checked = inner if isinstance(inner, Cell) else cell
    if checked in _CHECKED:
        return
    _CHECKED.add(checked)
    if not has_derivative(outputs):
        text = f"{type(checked).__name__} passes no gradient on: {NO_DERIVATIVE}"
        warnings.warn(text, NetworkWarning, stacklevel=2)
