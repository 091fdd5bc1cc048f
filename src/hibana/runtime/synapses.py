"""The check of the index of sparse synapses, which kernels read without further checks.

:func:`remember` avoids that unchanged tensors are read again.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["check_synapses", "remember"]

Result = TypeVar("Result")
CPU = torch.device("cpu")

_RESULTS: MutableMapping[Tensor, dict[Callable[..., Any], tuple[object, Any]]] = WeakTensorKeyDictionary()
"""For each tensor and function: the state of all arguments at the last call, and the result."""


def check_synapses(
    row_starts: Tensor,
    targets: Tensor,
    synapses: int,
    outputs: int,
    device: torch.device = CPU,
) -> None:
    """Checks that kernels can read sparse synapses by source neuron without leaving their arrays.

    The numbers of each tensor are read once, and again after its version counter, memory or size changed.

    Args:
        row_starts: the index of each source's first synapse, then the number of all: ``[sources + 1]``.
        targets: the target neuron of each synapse.
        synapses: the number of weights.
        outputs: the number of target neurons.
        device: the device that both tensors must be on.

    Raises:
        ValueError: if a tensor has the wrong dtype, device, layout or size; if `row_starts` does not rise
            from 0 to `synapses`; or if a target is not in ``[0, outputs)``.
    """
    for name, tensor, dtype in (("row_starts", row_starts, torch.int64), ("targets", targets, torch.int32)):
        if tensor.dtype != dtype or tensor.device != device or tensor.ndim != 1 or not tensor.is_contiguous():
            kind = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be one contiguous row of {dtype} on {device}, got {kind}")
    if targets.numel() != synapses:
        raise ValueError(f"targets must have one entry for each of {synapses} weights, got {targets.numel()}")
    first, last, least_count = remember(_ends_and_least_count, row_starts)
    if (first, last) != (0, synapses) or least_count < 0:
        numbers = f"{first} to {last}{', falling in between' if least_count < 0 else ''}"
        raise ValueError(f"row_starts must rise from 0 to {synapses}, the number of synapses; got {numbers}")
    least, most = remember(_least_and_most, targets)
    if synapses and not 0 <= least <= most < outputs:
        raise ValueError(f"targets must lie in [0, {outputs}), got {least} to {most}")


def remember(read: Callable[..., Result], tensor: Tensor, *others: Tensor | int) -> Result:
    """``read(tensor, *others)``, remembered as long as `tensor` lives and no argument changes.

    A change is seen by a tensor's version counter, memory and size; tensors without a version counter, which
    belong to the inference mode, are read each time.
    """
    arguments = tensor, *others
    if any(isinstance(x, Tensor) and x.is_inference() for x in arguments):
        return read(*arguments)
    state = [(x._version, x.data_ptr(), x.numel()) if isinstance(x, Tensor) else x for x in arguments]
    results = _RESULTS.setdefault(tensor, {})
    if read not in results or results[read][0] != state:
        results[read] = state, read(*arguments)
    result: Result = results[read][1]
    return result


def _ends_and_least_count(row_starts: Tensor) -> tuple[int, ...]:
    """The first and the last of `row_starts`, and the smallest difference of neighbors."""
    if row_starts.numel() < 2:
        return -1, -1, -1
    return int(row_starts[0]), int(row_starts[-1]), int(row_starts.diff().min())


def _least_and_most(targets: Tensor) -> tuple[int, ...]:
    """The smallest and the largest target; zeros without synapses."""
    return (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
