"""One step of a cell over one sample, as code within a larger kernel."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.libraries import vector_functions
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.graph.passes import forward_pass
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.runtime.kernels import Code, Floats, Longs, Pointer, Value

__all__ = ["VECTOR", "NeuronStep", "Numbers"]

VECTOR = 16
"""Numbers in a vector."""


@dataclass(frozen=True)
class Numbers:
    """Where a kernel finds the numbers of a cell; each a tensor of :meth:`NeuronStep.numbers`."""

    parameters: Floats
    constants: Floats
    matrices: Floats
    functions: Longs
    scratch: Floats
    """:attr:`NeuronStep.scratch` rows."""


class NeuronStep:
    """The step of `cell` on a layer of so many `neurons`, traced.

    Raises:
        Unsupported: if the step can't be compiled.
    """

    def __init__(self, cell: Cell, neurons: int) -> None:
        self.neurons = neurons
        self.step = trace(cell, torch.Size((1, neurons)), torch.float32)
        self._functions = vector_functions(self.step, torch.float32)
        self._pass = Pass("neurons", forward_pass(self.step, None), Floats, frozenset(self._functions))
        self._rows = [*self._pass.scratch, *self._pass.products]
        self._matrices = list(dict.fromkeys(c.matrix for c in self._pass.sequence if c.function == "product"))
        self._called = sorted(self._pass.called & self._functions.keys())

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the rows of states, the emitted one last."""
        return self.step.states

    @property
    def scratch(self) -> int:
        """Rows of numbers that a step needs besides."""
        return len(self._rows)

    def numbers(self, cell: Cell) -> dict[str, Tensor]:
        """The tensors that a kernel reads, by the names of :class:`Numbers`, as `cell` has them now."""
        with torch.no_grad():
            given = self.step.prologue(*tensors_of(cell).values())
        size = self.neurons

        def row(values: Tensor) -> Tensor:
            return values.detach().to(torch.float32).expand(1, size).reshape(size)

        def matrix(at: int) -> Tensor:
            index, turned = divmod(at, 2)
            values: Tensor = (
                given[self.step.parameters + index].detach().to(torch.float32).reshape(size, size)
            )
            return values.T if turned else values

        empty = torch.empty(0, dtype=torch.float32, device="cpu")
        rows = [row(values) for values in given[: self.step.parameters]]
        matrices = [matrix(at) for at in self._matrices]
        return {
            "parameters": torch.stack(rows) if rows else empty,
            "constants": torch.tensor(self.step.constants, dtype=torch.float32, device="cpu"),
            "matrices": torch.stack(matrices) if matrices else empty,
            "functions": torch.tensor(
                [self._functions[name] for name in self._called], dtype=torch.int64, device="cpu"
            ),
        }

    def emit(self, code: Code, given: Mapping[str, Pointer], at: Numbers, size: Value, stride: Value) -> None:
        """Writes one step.

        Args:
            code: the kernel.
            given: the rows of a sample by the names of a pass: ``x``, ``emitted_before``, and each state.
            at: the cell's numbers.
            size: how many neurons there are.
            stride: from one scratch row to the next.
        """
        rows = dict(given)
        for name, leaf in self._pass.leaves.items():
            if leaf.is_row and name not in rows:
                rows[name] = at.parameters + size * int(name[1:])
        for i, name in enumerate(self._rows):
            rows[name] = at.scratch + stride * i
        scalars = scalar_arguments(
            [self._pass],
            lambda array, i: at.constants[i] if array == "c" else (at.parameters + size * int(array[1:]))[0],
        )
        functions = {name: Pointer.at(at.functions[i]) for i, name in enumerate(self._called)}
        for call in self._pass.sequence:
            taken = [rows[name] for name in call.rows]
            if call.function == "product":
                matrix = at.matrices + size * size * self._matrices.index(call.matrix)
                _product(code, taken[0], matrix, taken[-1], size)
            else:
                write_call(code, call, taken, scalars, functions, size, code.constant(0))


def _product(code: Code, operand: Pointer, matrix: Pointer, target: Pointer, size: Value) -> None:
    """``target = operand @ matrix``: a row of the matrix for each number that is not zero."""
    target.clear(size)
    with code.loop(0, size) as i:
        x = operand[i]
        with code.when(x.differs(0)):
            row = matrix + i * size
            for at, there in code.vectors(size, VECTOR):
                total = (target + at).load(VECTOR, there) + x.spread(VECTOR) * (row + at).load(VECTOR, there)
                (target + at).store(total, there)
