"""The check of the index of sparse synapses, which kernels read without further checks."""

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["check_synapses"]

_BOUNDS: MutableMapping[Tensor, tuple[object, tuple[int, ...]]] = WeakTensorKeyDictionary()
"""For each index tensor: its version, memory and size when it was last read, and the numbers that count."""


def check_synapses(row_starts: Tensor, targets: Tensor, synapses: int, outputs: int) -> None:
    """Checks that kernels can read sparse synapses by source neuron without leaving their arrays.

    The numbers of each tensor are read once, and again after its version counter, memory or size changed.

    Args:
        row_starts: the index of each source's first synapse, then the number of all: ``[sources + 1]``.
        targets: the target neuron of each synapse.
        synapses: the number of weights.
        outputs: the number of target neurons.

    Raises:
        ValueError: if a tensor has the wrong dtype, device, layout or size; if `row_starts` does not rise
            from 0 to `synapses`; or if a target is not in ``[0, outputs)``.
    """
    for name, tensor, dtype in (("row_starts", row_starts, torch.int64), ("targets", targets, torch.int32)):
        if tensor.dtype != dtype or not tensor.is_cpu or tensor.ndim != 1 or not tensor.is_contiguous():
            kind = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be one contiguous row of {dtype} on the CPU, got {kind}")
    if targets.numel() != synapses:
        raise ValueError(f"targets must have one entry for each of {synapses} weights, got {targets.numel()}")
    first, last, least_count = _bounds(row_starts, _ends_and_least_count)
    if (first, last) != (0, synapses) or least_count < 0:
        numbers = f"{first} to {last}{', falling in between' if least_count < 0 else ''}"
        raise ValueError(f"row_starts must rise from 0 to {synapses}, the number of synapses; got {numbers}")
    least, most = _bounds(targets, _least_and_most)
    if synapses and not 0 <= least <= most < outputs:
        raise ValueError(f"targets must lie in [0, {outputs}), got {least} to {most}")


def _bounds(tensor: Tensor, read: Callable[[Tensor], tuple[int, ...]]) -> tuple[int, ...]:
    """``read(tensor)``, remembered until the tensor changes; tensors without a version are read each time."""
    if tensor.is_inference():
        return read(tensor)
    state = tensor._version, tensor.data_ptr(), tensor.numel()
    remembered = _BOUNDS.get(tensor)
    if remembered is None or remembered[0] != state:
        remembered = _BOUNDS[tensor] = state, read(tensor)
    return remembered[1]


def _ends_and_least_count(row_starts: Tensor) -> tuple[int, ...]:
    """The first and the last of `row_starts`, and the smallest difference of neighbors."""
    if row_starts.numel() < 2:
        return -1, -1, -1
    return int(row_starts[0]), int(row_starts[-1]), int(row_starts.diff().min())


def _least_and_most(targets: Tensor) -> tuple[int, ...]:
    """The smallest and the largest target; zeros without synapses."""
    return (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
