"""A cell in integers: the fixed-point form of the step of any cell, as a module."""

import operator
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.analysis.fixed_point import FixedStep, Range, fixed_step, measured_ranges
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.network.straight import straight_through

__all__ = ["FixedCell", "fixed_cell", "ranges_of"]

_TRACED: "WeakKeyDictionary[Cell, tuple[object, Step]]" = WeakKeyDictionary()
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "neg", "gt", "ge", "lt", "le", "eq", "ne")
    },
    **{name: getattr(torch, f"logical_{name}") for name in ("and", "or", "xor", "not")},
    **{name: getattr(torch, name) for name in ("abs", "floor", "maximum", "minimum", "where")},
    "to_bool": lambda x: x != 0,
    "product": torch.matmul,
}


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
        name: of its layer.
        cell: in the units of its network.
        shape: of one sample.
        unit: of an integer of its input, or one for each channel.
        limit: the largest integer in a matrix of the step.
        ranges: those of :func:`ranges_of`, if the form depends on them.
        training: gradients are those of `cell` at the same states.

    Raises:
        RangesNeeded: if the form depends on ranges, and there are none.
        Unsupported: naming the layer, the cell and the operation that has no integer form.
    """
    step, tensors, rest = _traced(name, cell, shape)
    try:
        form = fixed_step(step, tensors, rest, unit, limit, ranges)
    except Unsupported as refused:
        raise Unsupported(f"layer {name!r}: {type(cell).__name__}: {refused}") from refused
    return FixedCell(cell, form, rest, unit, training)


def ranges_of(name: str, cell: Cell, shape: tuple[int, ...], inputs: Tensor) -> list[Range]:
    """The range of each value of the step of `cell` over `inputs`, ``[T, batch, ...]``."""
    return measured_ranges(*_traced(name, cell, shape), inputs)


def _traced(name: str, cell: Cell, shape: tuple[int, ...]) -> tuple[Step, list[Tensor], list[Tensor]]:
    """The step of `cell` in float64, the tensors that it reads, and its states at rest."""
    one = torch.zeros(1, *shape, dtype=torch.float64, device="cpu")
    try:
        about = dependencies_of(cell).key
    except Unsupported:
        about = None
    known, step = _TRACED.get(cell, (None, None))
    if step is None or about is None or known != (about, one.shape):
        try:
            step = trace(deepcopy(cell).double(), one.shape, torch.float64)
        except Unsupported as refused:
            raise Unsupported(f"layer {name!r}: {refused}") from refused
        _TRACED[cell] = (about, one.shape), step
    with torch.no_grad():
        tensors = [value.detach().double().cpu() for value in tensors_of(cell).values()]
        rest = [state.double().cpu() for state in cell.initial_state(one)]
    return step, tensors, rest


@final
class FixedCell(Cell):
    """The step of a cell in integers, which are held exactly by the dtype of its input.

    In training its gradient is that of the cell itself, in its own units, at the same states (straight
    through all roundings of a step).
    """

    def __init__(
        self, cell: Cell, form: FixedStep, rest: Sequence[Tensor], unit: Tensor, training: bool
    ) -> None:
        nn.Module.__init__(self)
        self.name, self.names = type(cell).__name__, tuple(cell.state_names())
        self._enter(self.names)
        order = reachable(form.nexts)
        at = {value: i for i, value in enumerate(order)}
        self.program: tuple[tuple[Any, ...], ...] = tuple(
            (v.op, int(v.data), *(at[argument] for argument in v.args)) for v in order
        )
        """Operations, what they read, and the indices of their arguments."""
        self.ends = tuple(at[value] for value in form.nexts)
        self.fractions, self.errors = form.fractions, dict(form.errors)
        self.emits_spikes = len(self.names) - 1 in form.spikes
        self.of: tuple[Cell, ...] = (cell,) if training else ()
        """The cell whose gradient it has, which is not a part of it."""
        self.learned = tuple(tensors_of(cell)) if training else ()
        units = (unit, *form.units)
        begun = tuple((state[0] / u).round() for state, u in zip(rest, form.units, strict=True))
        self.at_rest = not any(bool(state.any()) for state in begun)
        for kind, values in (("c", form.constants), ("m", form.matrices), ("u", units), ("r", begun)):
            for i, value in enumerate(values):
                self.register_buffer(f"{kind}{i}", value, persistent=False)
        for i, value in enumerate(tensors_of(cell).values() if training else ()):
            self.register_buffer(f"l{i}", value.double(), persistent=False)

    @property
    def unit(self) -> Tensor:
        """The unit of what it emits."""
        unit: Tensor = self._read("u", len(self.names))
        return unit

    def takes(self, other: "FixedCell") -> bool:
        """Takes the numbers of `other` and returns True, if the compiled step of this cell serves both."""
        alike = ("program", "ends", "fractions", "of", "at_rest", "errors")
        same = all(getattr(self, name) == getattr(other, name) for name in alike)
        if same:
            self._buffers.update(other._buffers)
        return same

    def for_inference(self) -> None:
        """Drops what only training needs."""
        for i in range(len(self.learned)):
            del self._buffers[f"l{i}"]
        self.of, self.learned = (), ()

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next states in integers."""
        values: list[Any] = []
        for op, data, *args in self.program:
            if op == "input":
                values.append(input_)
            elif op == "previous":
                values.append(state[data])
            elif op == "number":
                values.append(data)
            elif op == "constant":
                values.append(self.fractions[data])
            elif op == "parameter":
                values.append(self._read("c", data))
            elif op == "to_float":
                values.append(values[args[0]].to(input_.dtype))
            else:
                matrix = (self._read("m", data // 2),) if op == "product" else ()
                values.append(_FUNCTIONS[op](*(values[i] for i in args), *matrix))
        after = tuple(values[i] for i in self.ends)
        if not self.of:
            return after
        units = [self._read("u", i + 1) for i in range(len(after))]
        real = self._real(input_ * self._read("u", 0), *map(operator.mul, state, units))
        return tuple(straight_through(r / u, a) for r, u, a in zip(real, units, after, strict=True))

    def _real(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The step of the cell itself, in its own units."""
        if not self.learned:
            return self.of[0](*given)  # type: ignore[no-any-return]
        tensors = {name: self._read("l", i) for i, name in enumerate(self.learned)}
        real: tuple[Tensor, ...] = torch.func.functional_call(self.of[0], tensors, given, tie_weights=False)
        return real

    def _read(self, kind: str, index: int) -> Any:
        return self._buffers[f"{kind}{index}"]

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # those of the cell
        return self.names

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        zeros = torch.zeros_like(input_)
        return tuple(zeros + self._read("r", i) for i in range(len(self.names)))

    def rests_at_zero(self) -> bool:
        return self.at_rest

    def _get_name(self) -> str:
        return f"Int{self.name}"

    def extra_repr(self) -> str:
        """The errors of its piecewise linear functions and matrices."""
        return ", ".join(f"{what}: {error:.2g}" for what, error in self.errors.items())
