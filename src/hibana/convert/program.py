"""A network as a program of plain PyTorch operations, for inference where hibana is not installed."""

import copy

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.layers import OverTime, Recurrent
from hibana.loop import reference

__all__ = ["export"]


def export(net: nn.Module, example: Tensor, *, dynamic_batch: bool = False) -> torch.export.ExportedProgram:
    """`net` for inference in a process without hibana: the loop over T written out in plain operations.

    The program is saved with ``torch.export.save`` and run with ``torch.export.load(path).module()(inputs)``.
    It computes what the reference loop does, for as many steps as `example` has, and starts at rest.

    Args:
        net: a network over ``[T, batch, ...]``; it is left as it is.
        example: an input, ``[T, batch, ...]``.
        dynamic_batch: whether the program takes any number of samples, or as many as `example` has.

    Raises:
        ValueError: if `net` holds something of hibana's that has no plain form.
    """
    plain = _plain(copy.deepcopy(net).eval())
    batch = {1: torch.export.Dim.AUTO} if dynamic_batch else None
    with torch.no_grad():
        shapes = None if batch is None else (batch,)
        program: torch.export.ExportedProgram = torch.export.export(plain, (example,), dynamic_shapes=shapes)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if own := sorted(name for name in operations if name.startswith("hibana")):
        raise ValueError(f"net holds operations without a plain form: {', '.join(own)}")
    return program


class _Loop(nn.Module):
    """`cell` over time as a Python loop, which an export unrolls; with a way back, if there is one."""

    def __init__(self, cell: Cell, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.cell.initial_state(inputs[0].to(reference.carried(inputs.dtype)))
        if self.recurrent is None:
            return reference.unroll(self.cell, inputs, state)[0]
        emitted = []
        for input_ in inputs:
            fed_back = self.recurrent(state[-1].to(inputs.dtype))
            outputs, state = reference.unroll(self.cell, (input_ + fed_back)[None], state)
            emitted.append(outputs)
        return torch.cat(emitted)


def _plain(module: nn.Module) -> nn.Module:
    """`module` with each layer of hibana in it replaced by one that runs PyTorch's own operations."""
    if isinstance(module, OverTime):
        return _Loop(module.cell)
    if isinstance(module, Recurrent):
        return _Loop(module.cell, _plain(module.recurrent))
    for kind in (nn.Linear, nn.Conv2d):
        if isinstance(module, kind) and type(module).__module__.startswith("hibana."):
            module.__class__ = kind  # the same parameters, multiplied densely
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    return module
