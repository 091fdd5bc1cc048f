"""A network as a program of PyTorch operations, for inference in a process without hibana.

``torch.export`` traces the reference loop of hibana's layers; scans replace layers in the tree of modules.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import reference
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.sparse_linear import DelayedSparseLinear
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
    dynamic = [axis for axis, is_dynamic in enumerate((dynamic_time, dynamic_batch)) if is_dynamic]
    if any(example.shape[axis] < 2 for axis in dynamic):
        raise ValueError(f"example must have at least 2 steps or samples where dynamic, got {example.shape}")
    shapes = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),) if dynamic else None
    if dynamic_time:  # else torch reads its compiler's cache of an earlier scan, which fixes sizes
        torch.compiler.reset()
    with torch.no_grad():
        plain = _plain(copy.deepcopy(net).eval(), has_scans=dynamic_time)
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

    `recurrent`, if not None, maps the spikes of the previous step to a current that is added to the input.
    """

    def __init__(self, cell: Cell, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the cell over `inputs`, ``[T, batch, ...]``, from the initial state."""
        dtype = reference.state_dtype(inputs.dtype)

        def step(state: tuple[Tensor, ...], input_: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            """The next state and the output of one step of the cell."""
            if self.recurrent is not None:
                input_ = input_ + self.recurrent(state[-1].to(input_.dtype))
            next_state = self.cell(input_.to(dtype), *state)
            # the next state and the output must be different tensors
            return tuple(part.clone() for part in next_state), next_state[-1].to(inputs.dtype).clone()

        state = tuple(part.clone() for part in self.cell.initial_state(inputs[0].to(dtype)))
        outputs: Tensor = scan(step, state, inputs)[1]
        return outputs


class _DelayedFeedback(Cell):
    """One step of neurons with delayed synapses to themselves.

    Its first state is the spikes of the `reach` steps before the previous one.
    """

    def __init__(self, cell: Cell, synapses: DelayedLinear | DelayedSparseLinear) -> None:
        nn.Module.__init__(self)
        self.cell, self.reach, self.dtype = cell, synapses.reach, synapses.weight.dtype
        self.feedback = synapses.feedback()

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # one more than the cell has
        """The previous spikes, ``earlier``, and the states of the cell."""
        return "earlier", *self.cell.state_names()

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """No previous spikes, ``[reach, batch, ...]``, and the initial state of the cell."""
        return input_.new_zeros(self.reach, *input_.shape), *self.cell.initial_state(input_)

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The next states, from an input ``[B, F]``."""
        previous_spikes, *state = states
        spikes = torch.cat([previous_spikes, state[-1][None]])  # [reach + 1, B, F]
        current = self.feedback([*spikes.to(self.dtype).unbind()])
        return spikes[1:], *self.cell(input_ + current, *state)


def _plain(module: Any, *, has_scans: bool) -> Any:
    """`module` with layers of hibana that run PyTorch operations: as a loop, or as a scan if `has_scans`."""
    if has_scans and isinstance(module, OverTime | Recurrent):
        cell, synapses = _plain(module.cell, has_scans=True), getattr(module, "recurrent", None)
        if isinstance(synapses, DelayedLinear | DelayedSparseLinear):
            return _Scan(_DelayedFeedback(cell, synapses))
        return _Scan(cell, None if synapses is None else _plain(synapses, has_scans=True))
    if hasattr(module, "backend"):
        module.backend = "reference"
    for torch_class, event_class in EVENT_CLASSES.items():
        if type(module) is event_class:
            module.__class__ = torch_class  # it has the same parameters, and multiplies densely
    for name, child in module.named_children():
        setattr(module, name, _plain(child, has_scans=has_scans))
    return module
