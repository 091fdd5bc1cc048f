"""Values of a step in float64, and their ranges over data: the reference of its fixed-point form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hibana.compiler.graph.analysis import Analysis, Rewriting, reachable
from hibana.compiler.graph.ops import Operation
from hibana.compiler.graph.step import Step, Value

Range = tuple[float, float]
"""Smallest and largest number over calibration data."""


def simplified_nexts(step: Step) -> tuple[Value, ...]:
    """The next states of `step`, with ``floor`` as the only rounding, and without ``fma`` and ``sign``."""
    return tuple(_Simplified().run(step.nexts))


def measured_ranges(
    step: Step, tensors: Sequence[Tensor], initial: Sequence[Tensor], inputs: Tensor
) -> list[Range]:
    """The least and greatest number of each intermediate value of `step` over `inputs`, ``[T, batch, ...]``.

    The values have the order of ``reachable(simplified_nexts(step))``; formats of fixed-point numbers follow
    from their ranges.

    `tensors` are the arguments of the step's prologue, `initial` its initial states.
    """
    nexts, parameters = simplified_nexts(step), step.prologue(*tensors)
    state = [torch.zeros_like(inputs[0], dtype=torch.float64) + value for value in initial]
    ranges: list[Range] = []
    for input_ in inputs.double():
        values = RealValues(step, parameters, input_, state)
        state = values.run(nexts)
        step_ranges = [(float(values.of(v).min()), float(values.of(v).max())) for v in reachable(nexts)]
        pairs = zip(ranges or step_ranges, step_ranges, strict=True)
        ranges = [(min(a, c), max(b, d)) for (a, b), (c, d) in pairs]
    return ranges


class _Simplified(Rewriting):
    """Replaces roundings by ``floor``, and removes ``fma`` and ``sign``."""

    def operation(self, value: Value, row: Operation, args: list[Value]) -> Value:
        """The operation `row` on `args`, without ``fma``, ``ceil``, ``trunc`` and ``sign``."""

        def make(op: str, *arguments: Value) -> Value:
            """The value of the operation `op` on `arguments`."""
            return Value(op, arguments)

        def ceil(x: Value) -> Value:
            """``ceil(x)`` as ``-floor(-x)``."""
            return make("neg", make("floor", make("neg", x)))

        x, zero = args[0], Value("number")
        if row.name == "fma":
            return make("add", make("mul", x, args[1]), args[2])
        if row.name == "ceil":
            return ceil(x)
        if row.name == "trunc":
            return make("where", make("lt", x, zero), ceil(x), make("floor", x))
        if row.name == "sign":
            return make("sub", *(make("to_float", make(op, x, zero)) for op in ("gt", "lt")))
        return super().operation(value, row, args)


class Eager(Analysis[Tensor]):
    """Tensors of values, computed by PyTorch in `dtype`; a subclass defines the tensors of leaves."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def operation(self, value: Value, row: Operation, args: list[Tensor]) -> Tensor:
        """The result of PyTorch's function for the operation `row`."""
        result = row.function(*args)
        return result if row.boolean else result.to(self.dtype)


class RealValues(Eager):
    """The values of a step in float64, from `parameters`, the results of its prologue.

    Only values that depend on `input_` and `state` need these.
    """

    def __init__(
        self,
        step: Step,
        parameters: Sequence[Tensor],
        input_: Tensor | None = None,
        state: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(torch.float64)
        self.step, self.input, self.state = step, input_, state
        self.tensors: list[Tensor] = [value.double() for value in parameters]

    def on_input(self, value: Value) -> Tensor:
        """The input of the step."""
        assert self.input is not None
        return self.input

    def on_previous(self, value: Value) -> Tensor:
        """The state before the step."""
        return self.state[value.data]

    def on_parameter(self, value: Value) -> Tensor:
        """The tensor of a parameter of the step."""
        return self.tensors[value.data]

    def on_constant(self, value: Value) -> Tensor:
        """A constant of the step, as a tensor."""
        return torch.tensor(self.step.constants[value.data], dtype=torch.float64, device="cpu")

    def on_number(self, value: Value) -> Tensor:
        """A number, as a tensor."""
        return torch.tensor(float(value.data), dtype=torch.float64, device="cpu")

    def matrix(self, value: Value) -> Tensor:
        """The matrix of a product, ``[from, to]``."""
        index, transposed = value.matrix
        matrix = self.tensors[self.step.parameters + index]
        return matrix.T if transposed else matrix

    def product(self, value: Value, args: list[Tensor]) -> Tensor:
        """The product of a vector and a matrix of the step."""
        return args[0] @ self.matrix(value)
