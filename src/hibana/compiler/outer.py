"""The gradient of a matrix in a step: outer products, summed over samples and time.

It is the matrix product of the gradients that arrived with the values that were multiplied. Spikes were kept
as bits, and :mod:`hibana.spikes` multiplies by bits faster than a dense product: see :data:`by_bits`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from hibana.compiler.strides import row_bytes, unpacked

if TYPE_CHECKING:
    from hibana.compiler.graph.synapses import Operand

by_bits: Callable[[Tensor, Tensor], Tensor] | None = None
"""``rows^T B`` for rows of float32 and rows B of as many bits, in whole words of 64; the package sets it."""


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
    return found.T if operand.turned else found


def _product(gradient: Tensor, residual: Tensor, is_bits: bool) -> Tensor:
    neurons = gradient.shape[-1]
    rows = gradient.flatten(0, 1)
    residual = residual.flatten(0, 1)
    if not is_bits:
        return rows.T @ residual
    if by_bits is not None and rows.dtype == torch.float32 and len(rows) and rows.device.type == "cpu":
        words = pad(residual, (0, -residual.shape[1] % 8)).view(torch.int64)
        return by_bits(rows, words)
    return rows.T @ unpacked(residual, neurons).to(rows.dtype)
