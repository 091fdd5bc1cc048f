"""The state of a stream as tensors by layer, read from its block and written to it."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from hibana.compiler import State
from hibana.compiler.analysis.binary import is_binary
from hibana.compiler.memory_layout import unpack_bits
from hibana.network.lowering import StateArray

__all__ = ["pack_bits", "read_state", "write_state"]


def read_state(arrays: Sequence[StateArray], block: Tensor, dtype: torch.dtype) -> dict[str, State]:
    """The states of the layers by name, from the samples' blocks ``[batch, bytes]``."""
    states: dict[str, State] = {}
    counters = {array.layer: array for array in arrays if array.kind == "counter"}
    for array in arrays:
        if array.kind == "counter":
            continue
        if array.kind == "bits":
            packed = block[:, array.offset : array.offset + -(-prod(array.shape) // 64) * 8]
            in_memory = unpack_bits(packed, prod(array.shape)).to(dtype)
        else:
            in_memory = _view(block, array, dtype)
        if array.kind == "ring":
            steps = array.shape[0]
            now = _view(block, counters[array.layer], torch.int64)  # [batch, 1]
            order = (now + torch.arange(steps, dtype=torch.int64, device="cpu")) % steps  # [batch, steps]
            rows = in_memory.view(len(in_memory), steps, -1)
            in_memory = rows.gather(1, order[..., None].expand_as(rows)).transpose(0, 1)
        values = torch.empty_like(in_memory, memory_format=torch.contiguous_format)
        values[..., array.order] = in_memory
        shape = array.shape[1:] if array.kind == "ring" else array.shape
        states[array.layer] = (*states.get(array.layer, ()), values.view(*values.shape[:-1], *shape))
    return states


def write_state(
    arrays: Sequence[StateArray], block: Tensor, dtype: torch.dtype, state: Mapping[str, State]
) -> None:
    """Writes a state as :func:`read_state` returns it to the samples' blocks ``[batch, bytes]``.

    Raises ValueError, naming the layer, if `state` has other entries or shapes; nothing is written then.
    """
    current = read_state(arrays, block, dtype)
    if not isinstance(state, Mapping) or state.keys() != current.keys():
        entries = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"state must have an entry for each layer, {', '.join(current)}, got {entries or 'none'}"
        )
    for name, tensors in current.items():
        expected = [tuple(tensor.shape) for tensor in tensors]
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in state[name]]
        if shapes != expected:
            raise ValueError(f"state of layer {name!r} must be tensors of {expected}, got {shapes}")
    tensors_in_order = [tensor for name in current for tensor in state[name]]
    numbers = [array for array in arrays if array.kind != "counter"]
    written = list(zip(numbers, tensors_in_order, strict=True))
    for array, values in written:
        if array.kind == "bits" and not is_binary(values):
            raise ValueError(f"state of layer {array.layer!r}: spikes must be 0 or 1")
    for array, values in written:
        dims = len(array.shape) - (array.kind == "ring")
        in_memory = values.detach().to("cpu", dtype).flatten(-dims)[..., array.order]
        if array.kind == "bits":
            packed = pack_bits(in_memory)
            block[:, array.offset : array.offset + packed.shape[1]] = packed
        else:
            in_memory = in_memory.transpose(0, 1).flatten(1) if array.kind == "ring" else in_memory
            _view(block, array, dtype).copy_(in_memory)
    for array in arrays:
        if array.kind == "counter":
            _view(block, array, torch.int64).zero_()


def _view(block: Tensor, array: StateArray, dtype: torch.dtype) -> Tensor:
    """A view of `array` in the blocks of all samples, ``[batch, numbers]``."""
    first = array.offset // dtype.itemsize
    return block.view(dtype)[:, first : first + prod(array.shape)]


def pack_bits(values: Tensor) -> Tensor:
    """Zeros and ones ``[..., n]`` as bits ``[..., bytes]``, lowest bit first, padded to words of 64 bits."""
    packed = torch.from_numpy(np.packbits(values.numpy() != 0, axis=-1, bitorder="little"))
    return nn.functional.pad(packed, (0, -packed.shape[-1] % 8))
