"""A network as a program of PyTorch operations, for inference in a process without hibana.

hibana's layers are replaced in the tree of modules, because ``torch.export`` traces the calls itself.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import reference
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack
from hibana.runtime.torch_internals import scan
from hibana.spikes.adopt import EVENT_CLASSES
from hibana.spikes.sparse.autograd import multiply_traced

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
    plain = _plain(copy.deepcopy(net).eval(), _Scan if dynamic_time else _Loop)
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


class _Loop(nn.Module):
    """`cell` over time as a Python loop, which an export unrolls.

    `recurrent`, if not None, maps the spikes of the previous step to a current that is added to the input.
    """

    def __init__(self, cell: Cell, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.recurrent = cell, recurrent

    def current(self, input_: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """The input of the cell at a step that starts in `state`."""
        return input_ if self.recurrent is None else input_ + self.recurrent(state[-1].to(input_.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the cell over `inputs`, ``[T, batch, ...]``, from the initial state."""
        state = self.cell.initial_state(inputs[0].to(reference.state_dtype(inputs.dtype)))
        if self.recurrent is None:
            return reference.unroll(self.cell, inputs, state)[0]
        results = []
        for input_ in inputs:
            outputs, state = reference.unroll(self.cell, self.current(input_, state)[None], state)
            results.append(outputs)
        return torch.cat(results)


class _Scan(_Loop):
    """`cell` over time as torch's ``scan``, which an export keeps as a loop."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the cell over `inputs`, ``[T, batch, ...]``, from the initial state."""
        dtype = reference.state_dtype(inputs.dtype)

        def step(state: tuple[Tensor, ...], input_: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            """The next state and the output of one step of the cell."""
            next_state = self.cell(self.current(input_, state).to(dtype), *state)
            # the next state and the output must be different tensors
            return tuple(part.clone() for part in next_state), next_state[-1].to(inputs.dtype).clone()

        state = tuple(part.clone() for part in self.cell.initial_state(inputs[0].to(dtype)))
        outputs: Tensor = scan(step, state, inputs)[1]
        return outputs


class _SparseSums(nn.Module):
    """The sums of a :class:`hibana.SparseLinear` in operations of PyTorch."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.layer, self.reach = layer, layer.reach

    def forward(self, inputs: Tensor, skip: int = 0) -> Tensor:
        """The sums, ``[..., out_features]``; with delays, `inputs` are ``[T, batch, in_features]``.

        The first `skip` steps of the inputs are only read by later steps, and have no output.
        """
        layer = self.layer
        synapses = layer.weight, layer.row_starts, layer.targets, layer.delays
        sums = multiply_traced(inputs, *synapses, layer.out_features, self.reach, skip)
        return sums if layer.bias is None else sums + layer.bias


class _DelayedFeedback(Cell):
    """One step of neurons with delayed synapses to themselves.

    Its first state is the spikes of the `reach` steps before the previous one.
    """

    sums: _SparseSums | None
    """The sums over sparse synapses; None if the synapses are dense."""

    def __init__(self, cell: Cell, synapses: DelayedLinear | SparseLinear, reach: int) -> None:
        nn.Module.__init__(self)
        self.cell, self.reach, self.sums = cell, reach, None
        if isinstance(synapses, SparseLinear):
            self.sums = _SparseSums(synapses)
        else:
            self.weights = nn.Buffer(synapses.kernel().detach().permute(2, 1, 0).flatten(0, 1).clone())

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
        if self.sums is None:
            current = spikes.transpose(0, 1).flatten(1).to(self.weights.dtype) @ self.weights
        else:
            current = self.sums(spikes, self.reach)[0]
        return spikes[1:], *self.cell(input_ + current, *state)


def _plain(module: Any, loop: type[_Loop]) -> Any:
    """`module` with each layer of hibana replaced by one that runs PyTorch operations."""
    if isinstance(module, SparseLinear):
        return _SparseSums(module)
    if isinstance(module, OverTime):
        return loop(_plain(module.cell, loop))
    if isinstance(module, Recurrent | DelayedRecurrent):
        cell, synapses = _plain(module.cell, loop), module.recurrent
        if isinstance(synapses, DelayedLinear | SparseLinear) and isinstance(synapses, LooksBack):
            return loop(_DelayedFeedback(cell, synapses, synapses.reach))
        return loop(cell, _plain(synapses, loop))
    for torch_class, event_class in EVENT_CLASSES.items():
        if type(module) is event_class:
            module.__class__ = torch_class  # it has the same parameters, and multiplies densely
    for name, child in module.named_children():
        setattr(module, name, _plain(child, loop))
    return module
