"""One step of a cell over one sample, emitted into a larger kernel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.cpu.vector_functions import vector_functions
from hibana.compiler.graph.passes import forward_pass
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.runtime.kernels import Code, Floats, Pointer, Value

__all__ = ["VECTOR", "CellStep"]

VECTOR = 16
"""Numbers in a vector."""


class CellStep:
    """The traced step of `cell` for a layer of `neurons` neurons, in float32.

    Raises:
        Unsupported: if the step can't be compiled.
    """

    def __init__(self, cell: Cell, neurons: int) -> None:
        self.neurons = neurons
        self.step = trace(cell, torch.Size((1, neurons)), torch.float32)
        self._functions = vector_functions(self.step, torch.float32)
        self._pass = Pass("neurons", forward_pass(self.step, None), Floats, frozenset(self._functions))
        self._scratch = [*self._pass.scratch, *self._pass.products]
        self._matrices = list(dict.fromkeys(c.matrix for c in self._pass.sequence if c.function == "product"))
        self._called = sorted(self._pass.operations & self._functions.keys())
        self.scratch_rows = len(self._scratch)
        """Number of scratch rows, of one float32 per neuron, that a step needs."""

    def tensors(self, cell: Cell) -> dict[str, Tensor]:
        """The tensors that a kernel reads, with the current values of `cell`, by their argument names."""
        with torch.no_grad():
            tensors = self.step.prologue(*tensors_of(cell).values())
        values: list[Tensor] = [tensor.detach().float() for tensor in tensors]
        size, count = self.neurons, self.step.parameters

        def matrix(number: int) -> Tensor:
            """Matrix ``number // 2`` of the step, transposed if `number` is odd, ``[neurons, neurons]``."""
            index, is_transposed = divmod(number, 2)
            weights: Tensor = values[count + index].reshape(size, size)
            return weights.T if is_transposed else weights

        empty = torch.empty(0, dtype=torch.float32, device="cpu")
        rows = [value.expand(1, size).reshape(size) for value in values[:count]]
        matrices = [matrix(number) for number in self._matrices]
        addresses = [self._functions[name] for name in self._called]
        return {
            "parameters": torch.stack(rows) if rows else empty,
            "constants": torch.tensor(self.step.constants, dtype=torch.float32, device="cpu"),
            "matrices": torch.stack(matrices) if matrices else empty,
            "functions": torch.tensor(addresses, dtype=torch.int64, device="cpu"),
        }

    def emit(
        self,
        code: Code,
        rows: Mapping[str, Pointer],
        tensors: Mapping[str, Pointer],
        size: Value,
        stride: Value,
    ) -> None:
        """Adds one step of all neurons for one sample to the kernel `code`.

        Args:
            code: the kernel under construction.
            rows: addresses of one float32 per neuron: the input ``x``, the previous output
                ``emitted_before``, and each state by its name. The step overwrites the states.
            tensors: addresses of the arrays that :meth:`tensors` returns, and of the scratch memory
                (``scratch``).
            size: number of neurons.
            stride: distance between two rows of the scratch memory, in float32 numbers.
        """
        rows = dict(rows)
        for name, leaf in self._pass.leaves.items():
            if leaf.is_row and name not in rows:
                rows[name] = tensors["parameters"] + size * int(name[1:])
        for i, name in enumerate(self._scratch):
            rows[name] = tensors["scratch"] + stride * i

        def scalar(array: str, i: int) -> Value:
            """The number ``array[i]``: a constant if `array` is ``c``, else a parameter such as ``p2``."""
            if array == "c":
                return tensors["constants"][i]
            return (tensors["parameters"] + size * int(array[1:]))[0]

        scalars = scalar_arguments([self._pass], scalar)
        addresses = tensors["functions"]
        functions = {name: Pointer.from_address(addresses[i]) for i, name in enumerate(self._called)}
        for call in self._pass.sequence:
            operands = [rows[name] for name in call.rows]
            if call.function == "product":
                matrix = tensors["matrices"] + size * size * self._matrices.index(call.matrix)
                _multiply(code, operands[0], matrix, operands[-1], size)
            else:
                write_call(code, call, operands, scalars, functions, size, code.constant(0))


def _multiply(code: Code, operand: Pointer, matrix: Pointer, target: Pointer, size: Value) -> None:
    """Emits ``target = operand @ matrix`` with a ``[size, size]`` matrix, skipping zeros of `operand`."""
    target.clear(size)
    with code.loop(0, size) as i:
        x = operand[i]
        with code.when(x.differs(0)):
            row = matrix + i * size
            for at, mask in code.vectors(size, VECTOR):
                total = (target + at).load(VECTOR, mask) + x.spread(VECTOR) * (row + at).load(VECTOR, mask)
                (target + at).store(total, mask)
