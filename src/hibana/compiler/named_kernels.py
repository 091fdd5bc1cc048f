"""Kernels that take their tensors by name: of steps with matrix products, and of all steps in Triton.

The gradient of a matrix in a step is a sum of outer products over samples and time: the matrix product of the
gradients that arrived with the values that were multiplied. Spikes were kept as bits, and
:mod:`hibana.spikes` multiplies by bits faster than a dense product: see :data:`bit_product`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hibana.compiler.backend import BackwardArguments, ForwardArguments, Kernels
from hibana.compiler.memory_layout import row_bytes, unpack_bits

if TYPE_CHECKING:
    from hibana.compiler.graph.synapses import Operand

bit_product: Callable[[Tensor, Tensor], Tensor] | None = None
"""``rows^T B`` for rows of float32 and rows B of as many bits, in whole words of 64; the package sets it."""

Named = dict[str, Any]
"""Tensors, numbers and addresses by the names of a kernel's arguments."""


class NamedKernels(Kernels):
    """Allocates what a run writes, and launches a kernel with all tensors by the names of its arguments."""

    operands: "Sequence[Operand]"
    """Of the step's matrix products, whose gradients are one product each over the whole sequence."""

    @abstractmethod
    def _launch(
        self, direction: str, variant: bool, shape: torch.Size, parameters: Sequence[Tensor], given: Named
    ) -> None:
        """Run a kernel over sequences of `shape` with the arguments `given`; all others are null.

        `variant` says of a forward whether it keeps residuals, of a backward whether the gradient of the
        input is needed.
        """

    def _readable(self, sequence: Tensor) -> Tensor:
        """`sequence` in a dtype that kernels read and write."""
        return sequence

    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Where the input is of half precision, the emitted state is one of the last states, in full."""
        inputs, first, parameters, plan, ends, _, seed = given
        steps, *one = inputs.shape
        read = self._readable(inputs)
        outputs = read.new_empty(read.shape)
        # the emitted state is the last of the outputs, unless those are rounded
        written = [ends] * (len(self.step.states) - 1) + [ends and inputs.dtype != self.dtype]
        last = [inputs.new_empty(one, dtype=self.dtype) if there else None for there in written]
        kept = self.residual_shapes(steps, one) if plan else []
        residuals = [inputs.new_empty(size, dtype=dtype) for size, dtype in kept]
        named: Named = {"input": read, "input_step": read.stride(0), "outputs": outputs, "seed": seed}
        named |= self._by_state(first=first, last=last) | dict(zip(self.plan.names, residuals, strict=False))
        self._launch("forward", plan is not None, inputs.shape, parameters, named)
        return outputs.to(inputs.dtype), [value for value in last if value is not None], residuals

    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        shape, inputs, first, parameters, residuals, grad_outputs, last_grads = given[:7]
        one = shape[1:]
        like = next(t for t in (*residuals, grad_outputs, *last_grads, *parameters) if t is not None)
        if grad_outputs is None:
            grad_outputs = like.new_zeros(one, dtype=self.dtype).expand(shape)
        arriving = self._readable(grad_outputs)
        read = None if inputs is None else self._readable(inputs)
        grad_input = None
        if given.wants_input:
            grad_input = like.new_empty(shape, dtype=arriving.dtype)
        first_grads = [like.new_empty(one, dtype=self.dtype) if given.wants_first else None for _ in first]
        sums = [like.new_empty(one, dtype=self.dtype) for _ in self.step.grad_sums]
        named: Named = {} if read is None else {"input": read, "input_step": read.stride(0)}
        named |= {"grad_outputs": arriving, "grad_outputs_step": arriving.stride(0), "grad_input": grad_input}
        named |= {"wants_first": int(given.wants_first), "seed": given.seed}
        named |= self._by_state(first=first, last_grad=last_grads, first_grad=first_grads)
        named |= {f"sum{i}_all": t for i, t in enumerate(sums)}
        named |= dict(zip(self.plan.names, residuals, strict=False))
        at = {} if grad_input is None else {self.step.grad_input: grad_input}
        for i, operand in enumerate(self.operands):
            if operand.gradient not in at:  # written once for all products that want it
                at[operand.gradient] = named[f"outer{i}_all"] = like.new_empty(shape, dtype=self.dtype)
        self._launch("backward", given.wants_input, shape, parameters, named)
        if grad_input is not None:
            grad_input = grad_input.to(grad_outputs.dtype)
        kept = dict(zip(self.plan.stored, residuals, strict=True))
        for o in self.operands:
            residual = inputs if o.residual.is_input else kept[o.residual]
            assert residual is not None
            sums.append(over_time(o, residual, None if o.state is None else first[o.state], at[o.gradient]))
        return grad_input, first_grads, sums

    def _by_state(self, **tensors: Sequence[Tensor | None]) -> Named:
        """The arguments ``{state}_{name}``; the last of the states may be missing."""
        return {
            f"{state}_{name}": tensor
            for name, each in tensors.items()
            for state, tensor in zip(self.step.states, each, strict=False)
        }


def over_time(operand: "Operand", residual: Tensor, begun: Tensor | None, gradient: Tensor) -> Tensor:
    """``left^T right`` of the pair that `operand` is of, over samples and time.

    Args:
        operand: which side it is, and whether it is what was kept a step earlier.
        residual: what was kept, ``[T, ...]``: numbers, or bytes of bits of each sample.
        begun: what was multiplied at the first step, if that was a state that the run began with.
        gradient: what arrived, ``[T, ..., N]``.
    """
    steps, neurons = gradient.shape[0], gradient.shape[-1]
    arriving = gradient.reshape(steps, math.prod(gradient.shape[1:-1]), neurons)
    columns = row_bytes(neurons) if operand.residual.boolean else neurons
    residual = residual.reshape(*arriving.shape[:2], columns)
    if operand.state is None:
        found = _product(arriving, residual, operand.residual.boolean)
    else:
        found = _product(arriving[1:], residual[:-1], operand.residual.boolean)
    if begun is not None:
        found = found + arriving[0].T @ begun.reshape(-1, neurons)
    return found.T if operand.is_left else found


def _product(gradient: Tensor, residual: Tensor, is_bits: bool) -> Tensor:
    neurons = gradient.shape[-1]
    rows = gradient.flatten(0, 1)
    residual = residual.flatten(0, 1)
    if not is_bits:
        return rows.T @ residual
    if bit_product is not None and rows.dtype == torch.float32 and len(rows) and rows.device.type == "cpu":
        words = pad(residual, (0, -residual.shape[1] % 8)).view(torch.int64)
        return bit_product(rows, words)
    return rows.T @ unpack_bits(residual, neurons).to(rows.dtype)
