"""Checked, private copies of the index of sparse synapses, which kernels read without further checks.

:func:`read_once` notices every change of a tensor, also one that PyTorch does not count: a write through
``.data``, ``.numpy()`` or a pointer.
"""

import ctypes
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hibana.runtime import available
from hibana.runtime.kernels import LONG, Bytes, Code, Longs, Value, kernel, pack_arguments, run

__all__ = ["SynapseIndex", "longest_delay", "read_once", "shortest_delay"]

Result = TypeVar("Result")
PART = 1 << 18
"""Bytes of a part of a tensor, whose checksum one thread computes."""
GRAIN = 4
"""Fewest parts that a thread computes."""
FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""Odd multiplier of the checksum: 2^64 / golden ratio, as a signed number."""
WIDTH, VECTORS = 8, 4
"""Words of a vector, and vectors at once: 4 million int32 take 0.21 ms on one core of an AMD EPYC (Zen 4)."""

_RESULTS: MutableMapping[Tensor, dict[Callable[..., Any], tuple[object, Any]]] = WeakTensorKeyDictionary()
"""For each tensor and function: the state of all arguments at the last call, and the result."""


@dataclass(frozen=True, eq=False)
class SynapseIndex:
    """The checked synapses of a layer, in memory of their own: kernels read and write at these indices."""

    row_starts: Tensor
    """Index of the first synapse of each source neuron, then the number of all: ``[inputs + 1]``, int64."""
    offsets: Tensor
    """``delay * outputs + target`` of each synapse, ``[synapses]``, int32."""
    inputs: int
    outputs: int
    reach: int
    """The longest delay in steps."""

    @classmethod
    def check(
        cls, row_starts: Tensor, targets: Tensor, delays: Tensor | None, inputs: int, outputs: int
    ) -> "SynapseIndex":
        """The index of synapses from `inputs` to `outputs` neurons.

        Each call reads all tensors once; they are copied and checked again if a number changed.

        Args:
            row_starts: the index of each source's first synapse, then the number of all, int64.
            targets: the target neuron of each synapse, int32.
            delays: the delay of each synapse in steps, uint8; None for 0.
            inputs: the number of source neurons.
            outputs: the number of target neurons.

        Raises:
            ValueError: if a tensor has the wrong dtype, device, layout or size; if `row_starts` does not rise
                from 0 to the number of synapses; or if a target is not in ``[0, outputs)``.
        """
        return read_once(_checked_index, targets, row_starts, delays, inputs, outputs)

    @property
    def synapses(self) -> int:
        """The number of synapses."""
        return self.offsets.numel()

    @property
    def sources(self) -> Tensor:
        """The source neuron of each synapse, ``[synapses]``, int64."""
        return torch.repeat_interleave(self.row_starts.diff())

    @cached_property
    def by_target(self) -> tuple[Tensor, Tensor, Tensor]:
        """Synapses without delays in order of targets: each target's first synapse, sources, and indices."""
        order = self.offsets.argsort(stable=True)
        counts = torch.bincount(self.offsets, minlength=self.outputs)
        row_starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return row_starts, self.sources.to(torch.int32)[order], order


def _checked_index(
    targets: Tensor, row_starts: Tensor, delays: Tensor | None, inputs: int, outputs: int
) -> SynapseIndex:
    """As :meth:`SynapseIndex.check`, always read anew."""
    count = targets.numel()
    layouts = [
        ("row_starts", row_starts, torch.int64, inputs + 1),
        ("targets", targets, torch.int32, count),
    ]
    if delays is not None:
        layouts.append(("delays", delays, torch.uint8, count))
    for name, tensor, dtype, length in layouts:
        has_layout = tensor.dtype == dtype and tensor.device == targets.device and tensor.is_contiguous()
        if not has_layout or tensor.shape != (length,):
            kind = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            expected = f"{length} contiguous numbers of {dtype} on {targets.device}"
            raise ValueError(f"{name} must be {expected}, got {kind}")
    row_starts, targets = row_starts.clone(), targets.clone()
    first, last = int(row_starts[0]), int(row_starts[-1])
    falls = bool((row_starts[1:] < row_starts[:-1]).any())  # not diff, which overflows
    if (first, last) != (0, count) or falls:
        numbers = f"{first} to {last}{', falling in between' if falls else ''}"
        raise ValueError(f"row_starts must rise from 0 to {count}, the number of synapses; got {numbers}")
    least, most = (int(targets.min()), int(targets.max())) if count else (0, 0)
    if not 0 <= least <= most < outputs:
        raise ValueError(f"targets must lie in [0, {outputs}), got {least} to {most}")
    if delays is None:
        return SynapseIndex(row_starts, targets, inputs, outputs, 0)
    delays = delays.clone()
    reach = _maximum(delays)
    if (reach + 1) * outputs >= 1 << 31:
        raise ValueError(
            f"out_features * (longest delay + 1) must be below 2^31, got {outputs} * {reach + 1}"
        )
    return SynapseIndex(row_starts, torch.add(targets, delays, alpha=outputs), inputs, outputs, reach)


def longest_delay(delays: Tensor) -> int:
    """The longest of `delays` in steps, remembered until these change; 0 without synapses."""
    return read_once(_maximum, delays)


def shortest_delay(delays: Tensor) -> int:
    """The shortest of `delays` in steps, remembered until these change; 0 without synapses."""
    return read_once(_minimum, delays)


def _minimum(delays: Tensor) -> int:
    """The smallest number of `delays`; 0 without numbers."""
    return int(delays.min()) if delays.numel() else 0


def _maximum(delays: Tensor) -> int:
    """The largest number of `delays`; 0 without numbers."""
    return int(delays.max()) if delays.numel() else 0


def read_once(read: Callable[..., Result], tensor: Tensor, *others: Tensor | int | None) -> Result:
    """``read(tensor, *others)``, remembered as long as `tensor` lives and no argument changes.

    On the CPU a change is noticed by a checksum of all numbers; on other devices by the version counter,
    memory and size. A result must not depend on an argument's memory after the call.
    """
    arguments = tensor, *others
    state = [_state(x) if isinstance(x, Tensor) else x for x in arguments]
    results = _RESULTS.setdefault(tensor, {})
    if read not in results or results[read][0] != state:
        with torch.inference_mode(False):  # a later call with gradients may use the result
            results[read] = state, read(*arguments)
    result: Result = results[read][1]
    return result


def _state(tensor: Tensor) -> object:
    """A value that differs from the last one if a number of `tensor` changed."""
    if not tensor.is_cpu:
        # tensors of the inference mode have no version counter: they are read each time
        return object() if tensor.is_inference() else (tensor._version, tensor.data_ptr(), tensor.shape)
    kind = tensor.dtype, tensor.shape, tensor.stride()
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    if available.unavailable_reason():
        return kind, tensor.numpy().tobytes()
    # not a new tensor: torch.func and modes of torch replace it by a tensor without memory
    sums = (ctypes.c_int64 * -(-tensor.nbytes // PART))()
    arguments = tensor.data_ptr(), ctypes.addressof(sums), tensor.nbytes
    run(_checksums.kernel().address, len(sums), pack_arguments(arguments), GRAIN)
    return kind, bytes(sums)


@kernel
def _checksums(code: Code, begin: Value, end: Value, *, numbers: Bytes, sums: Longs, size: Value) -> None:
    """Writes a checksum of 64 bits for each part of `numbers`, `size` bytes. A work item is one part."""
    words = LONG.of(WIDTH)

    def mix(state: Value, word: Value) -> Value:
        """A bijection of `state` for each `word`, and of `word` for each `state`."""
        state = (state ^ word) * code.constant(FACTOR, state.type)
        return state ^ (state >> 32)

    with code.loop(begin, end) as part:
        first, last = part * PART, ((part + 1) * PART).smaller(size)
        states = [code.variable(code.lane_indices(words) + k * WIDTH) for k in range(VECTORS)]
        size_of_step = WIDTH * VECTORS * LONG.size
        last_step = last - (last - first) % size_of_step
        with code.loop(first, last_step, size_of_step) as byte:
            for k, state in enumerate(states):
                state.value = mix(state.value, ((numbers + byte).of(Longs) + k * WIDTH).load(WIDTH, align=1))
        total = states[0].value
        for state in states[1:]:
            total = mix(total, state.value)
        remainder = code.variable(total.sum())
        with code.loop(last_step, last) as byte:
            remainder.value = mix(remainder.value, numbers[byte].to(LONG))
        sums[part] = remainder.value
