"""A cell in integers: the fixed-point form of the step of any cell, as a module."""

import operator
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.analysis.fixed_point import FixedStep, Range, fixed_step, measured_ranges
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.dependencies import remembered
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.nn.layers import with_gradient

__all__ = ["FixedCell", "fixed_cell", "measure_ranges"]


def fixed_cell(
    name: str,
    cell: Cell,
    shape: tuple[int, ...],
    unit: Tensor,
    limit: int,
    ranges: Sequence[Range] | None,
    training: bool = False,
) -> "FixedCell":
    """`cell` in integers.

    Args:
        name: the layer's name, for messages.
        cell: the cell in floats.
        shape: the shape of one sample.
        unit: the real number that 1 of the integer input stands for, or one number per channel.
        limit: the largest integer in a matrix of the step.
        ranges: the result of :func:`measure_ranges`; None if ranges are not measured.
        training: whether the result has the gradient of `cell`.

    Raises:
        RangesNeeded: if the form depends on `ranges`, and they are None.
        Unsupported: naming the layer, the cell and the operation that has no integer form.
    """
    step, tensors, states = _traced_step(name, cell, shape)
    try:
        form = fixed_step(step, tensors, states, unit, limit, ranges)
    except Unsupported as error:
        raise Unsupported(f"layer {name!r}: {type(cell).__name__}: {error}") from error
    return FixedCell(cell, form, states, unit, training)


def measure_ranges(name: str, cell: Cell, shape: tuple[int, ...], inputs: Tensor) -> list[Range]:
    """The range of each value in the step of `cell` over `inputs`, ``[T, batch, ...]``."""
    return measured_ranges(*_traced_step(name, cell, shape), inputs)


def _traced_step(name: str, cell: Cell, shape: tuple[int, ...]) -> tuple[Step, list[Tensor], list[Tensor]]:
    """The step of `cell` in float64, its tensors, and its initial states for one sample of `shape`."""
    example = torch.zeros(1, *shape, dtype=torch.float64, device="cpu")

    def traced() -> Step:
        """The step."""
        try:
            return trace(deepcopy(cell).double(), example.shape, torch.float64)
        except Unsupported as error:
            raise Unsupported(f"layer {name!r}: {error}") from error

    step = remembered(cell, (_traced_step, example.shape), traced)
    with torch.no_grad():
        tensors = [value.detach().double().cpu() for value in tensors_of(cell).values()]
        states = [state.double().cpu() for state in cell.initial_state(example)]
    return step, tensors, states


def _function(operation: str) -> Callable[..., Any]:
    """The Python or PyTorch function of an operation of a step, for tensors and Python numbers."""
    function: Callable[..., Any] | None = getattr(torch, f"logical_{operation}", None)
    return function or getattr(operator, operation, None) or getattr(torch, operation)


@final
class FixedCell(Cell):
    """The step of a cell in integers, in a dtype that holds each integer exactly.

    In training the gradient of a step is that of the float cell at the same states: it passes straight
    through all roundings. Buffers are named by a letter and an index: ``c`` constants of the step, ``m``
    matrices, ``u`` the units of the input (0) and of the states, ``r`` initial states, ``l`` tensors of the
    float cell.
    """

    def __init__(
        self, cell: Cell, form: FixedStep, states: Sequence[Tensor], unit: Tensor, training: bool
    ) -> None:
        nn.Module.__init__(self)
        self.cell_name, self.names = type(cell).__name__, tuple(cell.state_names())
        self._create_cache(self.names)
        order = reachable(form.nexts)
        index = {value: i for i, value in enumerate(order)}
        self.program: tuple[tuple[Any, ...], ...] = tuple(
            (v.op, v.data, *(index[argument] for argument in v.args)) for v in order
        )
        """The values of the step in order: operation, data, and the indices of the arguments."""
        self.outputs = tuple(index[value] for value in form.nexts)
        self.fractions, self.errors = form.fractions, dict(form.errors)
        self.emits_spikes = len(self.names) - 1 in form.spikes
        self.float_cell: tuple[Cell, ...] = (cell,) if training else ()
        """The cell that gives the gradient; in a tuple, so that it is not registered as a submodule."""
        learned = {name: x.double() for name, x in tensors_of(cell).items()} if training else {}
        self.tensor_names = tuple(learned)
        initial = [(state[0] / u).round() for state, u in zip(states, form.units, strict=True)]
        self.starts_at_zero = not any(bool(state.any()) for state in initial)
        numbers = {
            "c": form.constants,
            "m": form.matrices,
            "u": (unit, *form.units),
            "r": initial,
            "l": learned.values(),
        }
        for letter, tensors in numbers.items():
            for i, values in enumerate(tensors):
                self.register_buffer(f"{letter}{i}", values, persistent=False)

    @property
    def unit(self) -> Tensor:
        """The unit of the output."""
        unit: Tensor = self._buffer("u", len(self.names))
        return unit

    def copy_numbers(self, other: "FixedCell") -> bool:
        """Takes over the buffers of `other` if both have the same program, and returns whether they have.

        The compiled step of this cell then serves the numbers of `other` as well.
        """
        compared = ("program", "outputs", "fractions", "float_cell", "starts_at_zero", "errors")
        same = all(getattr(self, name) == getattr(other, name) for name in compared)
        if same:
            self._buffers.update(other._buffers)
        return same

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next states in integers."""
        values: list[Any] = []
        for op, data, *indices in self.program:
            arguments = [values[i] for i in indices]
            match op:
                case "input":
                    result: Any = input_
                case "previous":
                    result = state[data]
                case "number":
                    result = data
                case "constant":
                    result = self.fractions[data]
                case "parameter":
                    result = self._buffer("c", data)
                case "product":
                    result = arguments[0] @ self._buffer("m", data // 2)
                case "to_float":
                    result = arguments[0].to(input_.dtype)
                case "to_bool":
                    result = arguments[0] != 0
                case _:
                    result = _function(op)(*arguments)
            values.append(result)
        next_states = tuple(values[i] for i in self.outputs)
        if not self.float_cell:
            return next_states
        (cell,), units = self.float_cell, [self._buffer("u", i + 1) for i in range(len(next_states))]
        tensors = {name: self._buffer("l", i) for i, name in enumerate(self.tensor_names)}
        inputs = input_ * self._buffer("u", 0), *map(operator.mul, state, units)
        real = torch.func.functional_call(cell, tensors, inputs, tie_weights=False)
        return tuple(
            with_gradient(integer.detach(), r / u, 1.0)
            for r, u, integer in zip(real, units, next_states, strict=True)
        )

    def _buffer(self, letter: str, index: int) -> Any:
        """The buffer with this letter and number."""
        return self._buffers[f"{letter}{index}"]

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # those of the cell
        """The names of the states of the cell that was quantized."""
        return self.names

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The initial state in integers, one tensor like `input_` per state."""
        zeros = torch.zeros_like(input_)
        return tuple(zeros + self._buffer("r", i) for i in range(len(self.names)))

    def rests_at_zero(self) -> bool:
        """Whether all tensors of the initial state are zeros."""
        return self.starts_at_zero

    def _get_name(self) -> str:
        """The name of the class that was quantized, after ``Int``."""
        return f"Int{self.cell_name}"

    def extra_repr(self) -> str:
        """The errors of piecewise linear functions and matrices."""
        return ", ".join(f"{name}: {error:.2g}" for name, error in self.errors.items())
