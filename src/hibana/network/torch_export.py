"""A network as a program of plain PyTorch operations, for inference where hibana is not installed.

Layers are replaced in the tree of modules; the calls are traced by ``torch.export``.
"""

import copy

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import reference
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent
from hibana.runtime.torch_internals import scan
from hibana.spikes.adopt import EVENT_CLASSES

__all__ = ["export"]


def export(
    net: nn.Module, example: Tensor, *, dynamic_batch: bool = False, dynamic_time: bool = False
) -> torch.export.ExportedProgram:
    """`net` for inference in a process without hibana: the loop over T in plain operations.

    The program is saved with ``torch.export.save`` and run with ``torch.export.load(path).module()(inputs)``.
    It computes what the reference loop does, and starts at rest. The loop is written out, for as many steps
    as `example` has, or stays a loop.

    Args:
        net: a network over ``[T, batch, ...]``; it is left as it is.
        example: an input, ``[T, batch, ...]``.
        dynamic_batch: whether the program takes any number of samples, or as many as `example` has.
        dynamic_time: whether it takes any number of steps, and does not grow with them: the loop of each
            layer is torch's ``scan``. It runs a step at a time, as the loop that is written out does. What
            ``torch.compile`` compiled before is compiled anew after it.

    Raises:
        ValueError: if `net` holds something of hibana's that has no plain form, or `example` has one step or
            one sample where any number is to be taken, from which torch would conclude that it is always one.
    """
    plain = _plain(copy.deepcopy(net).eval(), _Scan if dynamic_time else _Loop)
    moving = [axis for axis, moves in enumerate((dynamic_time, dynamic_batch)) if moves]
    if any(example.shape[axis] < 2 for axis in moving):
        raise ValueError(f"example must have two steps and samples where any are taken, got {example.shape}")
    shapes = (dict.fromkeys(moving, torch.export.Dim.DYNAMIC),) if moving else None
    if dynamic_time:  # else torch asks what its compiler kept of an earlier scan, and fixes sizes in asking
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
    if own := sorted(name for name in operations if name.startswith("hibana")):
        raise ValueError(f"net holds operations without a plain form: {', '.join(own)}")
    return program


class _Loop(nn.Module):
    """`cell` over time as a Python loop, which an export unrolls; with a way back, if there is one."""

    def __init__(self, cell: Cell, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.cell.initial_state(inputs[0].to(reference.state_dtype(inputs.dtype)))
        if self.recurrent is None:
            return reference.unroll(self.cell, inputs, state)[0]
        emitted = []
        for input_ in inputs:
            fed_back = self.recurrent(state[-1].to(inputs.dtype))
            outputs, state = reference.unroll(self.cell, (input_ + fed_back)[None], state)
            emitted.append(outputs)
        return torch.cat(emitted)


class _Scan(_Loop):
    """The same as a loop that an export keeps."""

    def forward(self, inputs: Tensor) -> Tensor:
        carried = reference.state_dtype(inputs.dtype)

        def step(state: tuple[Tensor, ...], input_: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            if self.recurrent is not None:
                input_ = input_ + self.recurrent(state[-1].to(inputs.dtype))
            after = self.cell(input_.to(carried), *state)
            # what goes on and what comes out must not be one tensor
            return tuple(part.clone() for part in after), after[-1].to(inputs.dtype).clone()

        begun = tuple(part.clone() for part in self.cell.initial_state(inputs[0].to(carried)))
        _, outputs = scan(step, begun, inputs)
        emitted: Tensor = outputs
        return emitted


class _FedBackLater(Cell):
    """One step of a :class:`hibana.DelayedRecurrent`, whose first state is the spikes before the last."""

    def __init__(self, layer: DelayedRecurrent) -> None:
        nn.Module.__init__(self)
        self.cell, self.longest = layer.cell, layer.recurrent.max_delay
        self.weights = nn.Buffer(layer.recurrent.kernel().detach().permute(2, 1, 0).flatten(0, 1).clone())

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # one more than the cell it has
        return "before", *self.cell.state_names()

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return input_.new_zeros(self.longest, *input_.shape), *self.cell.initial_state(input_)

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        before, *state = states
        seen = torch.cat([before, state[-1][None]])
        fed_back = seen.transpose(0, 1).flatten(1).to(self.weights.dtype) @ self.weights
        return seen[1:], *self.cell(input_ + fed_back, *state)


def _plain(module: nn.Module, loop: type[_Loop]) -> nn.Module:
    """`module` with each layer of hibana in it replaced by one that runs PyTorch's own operations."""
    if isinstance(module, OverTime):
        return loop(module.cell)
    if isinstance(module, Recurrent):
        return loop(module.cell, _plain(module.recurrent, loop))
    if isinstance(module, DelayedRecurrent):
        return loop(_FedBackLater(module))
    for kind, ours in EVENT_CLASSES.items():
        if type(module) is ours:
            module.__class__ = kind  # the same parameters, multiplied densely
    for name, child in module.named_children():
        setattr(module, name, _plain(child, loop))
    return module
