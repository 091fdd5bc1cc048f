"""A network as a program of PyTorch operations, for inference in a process without hibana.

``torch.export`` traces the reference loop of hibana's layers; scans replace layers in the tree of modules.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import reference
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import LooksBack
from hibana.runtime.torch_internals import scan
from hibana.spikes.adopt import EVENT_CLASSES

__all__ = ["export"]


def export(
    net: nn.Module, example: Tensor, *, dynamic_batch: bool = False, dynamic_time: bool = False
) -> torch.export.ExportedProgram:
    """`net` for inference in a process without hibana: the loop over T in PyTorch operations.

    ``torch.export.save`` writes the program, and ``torch.export.load(path).module()(inputs)`` runs it. It
    computes the same as the reference loop, from the initial state. The loop is unrolled for the number of
    steps of `example`, or stays a loop with `dynamic_time`.

    Args:
        net: a network over ``[T, batch, ...]``; it does not change.
        example: an input, ``[T, batch, ...]``.
        dynamic_batch: whether the program takes any number of samples instead of that of `example`.
        dynamic_time: whether the program takes any number of steps, and its size does not grow with them: the
            loop of each layer is torch's ``scan``, one step at a time. Everything that ``torch.compile``
            compiled before is compiled again after the call.

    Raises:
        ValueError: if a layer of hibana in `net` has no form in PyTorch operations, or a dynamic dimension of
            `example` has size 1, which torch would take for a constant.
    """
    plain = _plain(copy.deepcopy(net).eval(), has_scans=dynamic_time)
    dynamic = [axis for axis, is_dynamic in enumerate((dynamic_time, dynamic_batch)) if is_dynamic]
    if any(example.shape[axis] < 2 for axis in dynamic):
        raise ValueError(f"example must have at least 2 steps or samples where dynamic, got {example.shape}")
    shapes = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),) if dynamic else None
    if dynamic_time:  # else torch reads its compiler's cache of an earlier scan, which fixes sizes
        torch.compiler.reset()
    with torch.no_grad():
        program: torch.export.ExportedProgram = torch.export.export(plain, (example,), dynamic_shapes=shapes)
    operations = {
        str(node.target)
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_function"
    }
    if custom := sorted(name for name in operations if name.startswith("hibana")):
        raise ValueError(f"net holds operations without a plain form: {', '.join(custom)}")
    return program


class _Scan(nn.Module):
    """`cell` over time as torch's ``scan``, which an export keeps as a loop.

    `recurrent`, if not None, maps the spikes of the previous step, or of several steps, to a current that is
    added to the input.
    """

    def __init__(self, cell: Cell, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the cell over `inputs`, ``[T, batch, ...]``, from the initial state."""
        dtype, synapses = reference.state_dtype(inputs.dtype), self.recurrent
        reach, feedback = 0, None
        if isinstance(synapses, LooksBack):
            reach, feedback = synapses.reach, synapses.feedback()

        def step(carry: tuple[Tensor, ...], input_: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            """The next carry and the output; a carry is the spikes of `reach` earlier steps and the state."""
            spikes = [*carry[:reach], carry[-1]]
            if feedback is not None:
                input_ = input_ + feedback([step_spikes.to(input_.dtype) for step_spikes in spikes])
            elif synapses is not None:
                input_ = input_ + synapses(carry[-1].to(input_.dtype))
            next_state = self.cell(input_.to(dtype), *carry[reach:])
            # the next carry and the output must be different tensors
            next_carry = tuple(part.clone() for part in (*spikes[1:], *next_state))
            return next_carry, next_state[-1].to(inputs.dtype).clone()

        state = tuple(part.clone() for part in self.cell.initial_state(inputs[0].to(dtype)))
        earlier = tuple(torch.zeros_like(state[-1]) for _ in range(reach))
        outputs: Tensor = scan(step, (*earlier, *state), inputs)[1]
        return outputs


def _plain(module: Any, *, has_scans: bool) -> Any:
    """`module` with layers of hibana that run PyTorch operations: as a loop, or as a scan if `has_scans`."""
    if has_scans and isinstance(module, OverTime | Recurrent):
        cell, synapses = _plain(module.cell, has_scans=True), getattr(module, "recurrent", None)
        return _Scan(cell, None if synapses is None else _plain(synapses, has_scans=True))
    if hasattr(module, "backend"):
        module.backend = "reference"
    for torch_class, event_class in EVENT_CLASSES.items():
        if type(module) is event_class:
            module.__class__ = torch_class  # it has the same parameters, and multiplies densely
    for name, child in module.named_children():
        setattr(module, name, _plain(child, has_scans=has_scans))
    return module
