"""What a cell is compiled to, for people: its equations as traced, the backend and why, what is kept."""

import torch
from torch import nn

from hibana.cells import Cell

__all__ = ["explain"]


def explain(
    module: nn.Module,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "cpu",
) -> str:
    """What becomes of a cell, a layer, or each layer of a network: equations, backend, cost, source.

    For each cell: the backend that serves it and why, what its backward keeps in bits per neuron and step,
    the equations of a step and of its gradient as they were traced, and the generated source. For a layer
    that works per spike: how it chose between events and the dense product.

    Args:
        module: a cell, a layer, or any module that holds some.
        shape: of one step of input; only tensors per neuron make it matter, and by default it is theirs.
        dtype: of the input.
        backend: ``"cpu"`` or ``"triton"``.

    Raises:
        ValueError: if there is nothing of hibana's in `module`.

    >>> import hibana as hb
    >>> print(hb.explain(hb.IFCell(detach_reset=True)).partition("source")[0])  # doctest: +ELLIPSIS
    IFCell   state (v, s), emits s
    backend    cpu: one native kernel forward and one back, on torch's threads
    residuals  1 bit per neuron and step for the backward, nothing for inference
    ...
      v' = (v * (1 - s)) + x
      s' = [(v' - 1) > 0]
    ...
    """
    from hibana.loop.equations import REFERENCE, explain_cell

    reports = []
    told: set[nn.Module] = set()
    for name, part in module.named_modules():
        if part in told:
            continue
        if isinstance(part, Cell):
            report = explain_cell(part, shape, dtype, backend)
        elif callable(step := getattr(part, "step", None)) and isinstance(whole := step(), Cell):
            report = explain_cell(whole, shape, dtype, backend)
            if REFERENCE in report:
                report += "each step is called in Python, with the cell alone compiled, as follows\n"
            else:
                told.update(part.modules())
        elif callable(own := getattr(part, "explain", None)):
            report = f"{own()}\n"
        else:
            continue
        reports.append(f"{name.removesuffix('.cell') or 'cell'}: {report}" if part is not module else report)
    if not reports:
        raise ValueError(f"module must hold a cell or an event-driven layer, got {type(module).__name__}")
    return "\n".join(reports)
