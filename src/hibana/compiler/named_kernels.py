"""Kernels with arguments by name: the allocation of the tensors of a run, and the gradients of matrices.

The gradient of a matrix is a sum of outer products over samples and time, which is one matrix product: of the
gradients at the product with the values that the matrix multiplied. If these values are spikes, they were
stored as bits, and :data:`bit_product` is faster than a dense product.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hibana.compiler.backend import BackwardArguments, ForwardArguments, Kernels
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import Operand, operands
from hibana.compiler.memory_layout import row_bytes, unpack_bits

bit_product: Any = None
"""The function of two tensors that returns ``rows^T B``, of float32 rows and rows B of as many bits, in whole
64-bit words. :mod:`hibana` sets it."""
synapse_sums: Any = None
"""The function that returns the sum for each synapse, from the row starts and targets of sparse synapses, the
gradients of their targets, and rows of numbers or, for float32 gradients, of bits of their sources.
:mod:`hibana` sets it."""

Named = dict[str, Any]
"""Tensors, numbers and addresses by the names of a kernel's arguments; None is a null address."""
Variant = Plan | bool | None
"""The plan of the residuals that a forward writes, or whether a backward computes the input's gradient."""


class NamedKernels(Kernels):
    """Allocates the tensors that a run writes, and launches a kernel with its arguments by name."""

    def _set_step(self, step: Step) -> None:
        """Sets the step, the operands of its products, and the names of its arguments in the kernels."""
        super()._set_step(step)
        self._operands = operands(step)
        """The operands of matrix products; the gradient of each is one product over the whole sequence."""
        states = [f"{name}_state" for name in step.states]
        self._initial_names = tuple(f"{name}_first" for name in states)
        self._initial_grad_names = tuple(f"{name}_first_grad" for name in states)
        self._last_names = tuple(f"{name}_last" for name in states)
        self._last_grad_names = tuple(f"{name}_last_grad" for name in states)
        self._parameter_names = tuple(f"p{i}_at" for i in range(step.parameters))

    @abstractmethod
    def _launch(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        arguments: Named,
    ) -> None:
        """Runs the kernel of a `direction` and `variant` over sequences of `shape`.

        Args:
            direction: ``"forward"`` or ``"backward"``.
            variant: the kernel among those of that direction.
            shape: the shape of the sequences, ``[T, ...]``.
            matrices: the matrices of the step.
            arguments: all other arguments; a name that the kernel lacks is ignored.
        """

    def _readable(self, sequence: Tensor) -> Tensor:
        """`sequence` in a dtype that the kernels read and write."""
        return sequence

    def _new_sequence(self, read: Tensor, may_offset: bool) -> Tensor:
        """An uninitialized sequence for the results of a kernel that reads the sequence `read`.

        It has the shape of `read` and the strides of its steps, which follow one another.
        """
        strides = read[0].numel(), *read.stride()[1:]
        return torch.empty_strided(read.shape, strides, dtype=read.dtype, device=read.device)

    def forward(self, arguments: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Allocates the results and runs the forward kernel; returns the outputs, last states and residuals.

        The last states lack the output state, which is the last of the outputs. Half-precision outputs are
        rounded, so the last states then include it.
        """
        inputs, initial, parameters, plan, wants_last, may_offset, seed = arguments
        shape, count = inputs.shape, self.step.parameters
        read_inputs = self._readable(inputs)
        outputs = self._new_sequence(read_inputs, may_offset)
        last: list[Tensor] = []
        if wants_last:
            states = len(initial) - (inputs.dtype == self.dtype)
            last = [torch.empty_like(inputs[0], dtype=self.dtype) for _ in range(states)]
        layouts = self.residual_shapes(shape[0], shape[1:]) if plan else []
        residuals = [inputs.new_empty(residual_shape, dtype=dtype) for residual_shape, dtype in layouts]
        kernel_arguments: Named = {
            "input": read_inputs,
            "input_step": read_inputs.stride(0),
            "outputs": outputs,
            "seed": seed,
        }
        kernel_arguments.update(zip_longest(self._last_names, last))  # None for a state that is not wanted
        kernel_arguments.update(zip(self._initial_names, initial, strict=True))
        kernel_arguments.update(zip(self._parameter_names, parameters[:count], strict=True))
        if plan:
            kernel_arguments.update(zip(plan.names, residuals, strict=True))
        self._launch("forward", plan, shape, parameters[count:], kernel_arguments)
        return outputs.to(inputs.dtype), last, residuals

    def backward(
        self, arguments: BackwardArguments
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients as :meth:`Kernels.backward`; a matrix has the gradient of :func:`sum_over_time`."""
        shape, strides, inputs, initial, parameters, residuals, grad_outputs, last_grads = arguments[:8]
        count, wants_input = self.step.parameters, arguments.wants_input
        tensors = (*residuals, grad_outputs, inputs, *last_grads, *parameters, *initial)
        template = next((t for t in tensors if t is not None), None)
        if template is None:  # all gradients are zero
            template = torch.empty(0, dtype=self.dtype, device=self.device())
        if grad_outputs is None:
            zeros = template.new_zeros(shape[1:].numel(), dtype=self.dtype)
            grad_outputs = zeros.as_strided(shape, (0, *strides))
        input_dtype = grad_outputs.dtype
        if len(last_grads) == len(initial) and (last_grad := last_grads[-1]) is not None:
            grad_outputs = grad_outputs.to(self.dtype, copy=True)
            grad_outputs[-1] += last_grad
        read_grads = self._readable(grad_outputs)
        read_inputs = None if inputs is None else self._readable(inputs)
        grad_input = self._new_sequence(read_grads, arguments.may_offset) if wants_input else None
        initial_grads: list[Tensor | None] = [None] * len(initial)
        one_step = read_grads[0]
        if arguments.wants_first:
            initial_grads = [torch.empty_like(one_step, dtype=self.dtype) for _ in initial]
        sums = [torch.empty_like(one_step, dtype=self.dtype) for _ in self.step.grad_sums]
        kernel_arguments: Named = {
            **{
                "input": read_inputs,
                "input_step": 0 if read_inputs is None else read_inputs.stride(0),
                "grad_input": grad_input,
            },
            **{"grad_outputs": read_grads, "grad_outputs_step": read_grads.stride(0)},
            **{"wants_first": int(arguments.wants_first), "seed": arguments.seed},
        }
        kernel_arguments |= dict(zip(self._initial_names, initial, strict=True))
        kernel_arguments |= dict(zip(self._initial_grad_names, initial_grads, strict=True))
        kernel_arguments |= dict(zip(self._last_grad_names, last_grads, strict=False))
        kernel_arguments |= dict(zip(self._parameter_names, parameters[:count], strict=True))
        kernel_arguments |= {f"sum{i}_all": tensor for i, tensor in enumerate(sums)}
        kernel_arguments |= dict(zip(self.plan.names, residuals, strict=True))
        gradients = {} if grad_input is None else {self.step.grad_input: grad_input}
        for i, operand in enumerate(self._operands):
            if operand.gradient not in gradients:  # several products may share one gradient
                gradients[operand.gradient] = kernel_arguments[f"outer{i}_all"] = template.new_empty(
                    shape, dtype=self.dtype
                )
        self._launch("backward", wants_input, shape, parameters[count:], kernel_arguments)
        if grad_input is not None:
            grad_input = grad_input.to(input_dtype)
        stored = dict(zip(self.plan.stored, residuals, strict=True))
        for operand, matrix in zip(self._operands, self.step.summed_at, strict=True):
            residual = inputs if operand.residual.is_input else stored[operand.residual]
            assert residual is not None
            first = None if operand.state is None else initial[operand.state]
            index = None if matrix is None else self.step.index_of(parameters[count:], matrix)
            sums.append(sum_over_time(operand, residual, first, gradients[operand.gradient], index))
        return grad_input, initial_grads, sums


def sum_over_time(
    operand: Operand,
    residual: Tensor,
    first: Tensor | None,
    gradient: Tensor,
    index: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The matrix ``left^T right`` of a product's operand and gradient, summed over samples and time.

    Args:
        operand: the side of the pair, and the state if `residual` holds its value after each step: then the
            product reads it one step later.
        residual: the operand at each step, ``[T, ...]``: numbers, or bytes of bits of each sample.
        first: the operand at the first step if it is an initial state; None for zeros.
        gradient: the gradient at the product, ``[T, ..., N]``.
        index: the row starts and targets of a sparse matrix, whose sums at its synapses are the result,
            ``[synapses]``; None for all sums.
    """
    steps, neurons = gradient.shape[0], gradient.shape[-1]
    gradient = gradient.reshape(steps, math.prod(gradient.shape[1:-1]), neurons)
    columns = row_bytes(neurons) if operand.residual.boolean else neurons
    residual = residual.reshape(*gradient.shape[:2], columns)
    if operand.state is None:
        total = _product(gradient, residual, operand.residual.boolean, index)
    else:
        total = _product(gradient[1:], residual[:-1], operand.residual.boolean, index)
    if first is not None:
        total = total + _product(gradient[:1], first.reshape(1, -1, neurons), False, index)
    return total.T if operand.is_left and index is None else total


def _product(
    gradient: Tensor, residual: Tensor, is_bits: bool, index: tuple[Tensor, Tensor] | None
) -> Tensor:
    """``gradient^T residual``, summed over the first two dimensions, or its sums at the synapses of `index`.

    `residual` is the input of a recurrent product that the forward stored. With `is_bits` it holds 8 spikes a
    byte, of as many neurons as `gradient` has.
    """
    rows, residual = gradient.flatten(0, 1), residual.flatten(0, 1)
    if is_bits and rows.dtype == torch.float32 and len(rows) and rows.device.type == "cpu":
        words = pad(residual, (0, -residual.shape[1] % 8)).view(torch.int64)
        product: Tensor = bit_product(rows, words) if index is None else synapse_sums(*index, rows, words)
    else:
        numbers = unpack_bits(residual, rows.shape[1]).to(rows.dtype) if is_bits else residual
        product = rows.T @ numbers if index is None else synapse_sums(*index, rows, numbers)
    return product
