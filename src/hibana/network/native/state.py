"""The state of a stream as tensors by layer, read from its block and written to it."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from hibana.compiler import State
from hibana.network.native.blocks import Array, pack_bits, unpack_bits

__all__ = ["get", "put"]


def get(arrays: Sequence[Array], block: Tensor, dtype: torch.dtype) -> dict[str, State]:
    """From each layer's name to its tensors, of the samples' blocks ``[batch, bytes]``."""
    found: dict[str, State] = {}
    counters = {array.layer: array for array in arrays if array.kind == "counter"}
    for array in arrays:
        if array.kind == "counter":
            continue
        count = prod(array.shape)
        if array.kind == "bits":
            packed = block[:, array.offset : array.offset + -(-count // 64) * 8]
            flat = unpack_bits(packed, count, dtype)
        else:
            flat = _view(block, array, dtype)
        if array.kind == "ring":
            steps = array.shape[0]
            now = _view(block, counters[array.layer], torch.int64)  # [batch, 1]
            order = (now + torch.arange(steps, dtype=torch.int64, device="cpu")) % steps  # [batch, steps]
            rows = flat.view(len(flat), steps, -1)
            flat = rows.gather(1, order[..., None].expand_as(rows)).transpose(0, 1)
        values = torch.empty_like(flat, memory_format=torch.contiguous_format)
        values[..., array.order] = flat
        shape = array.shape[1:] if array.kind == "ring" else array.shape
        found[array.layer] = (*found.get(array.layer, ()), values.view(*values.shape[:-1], *shape))
    return found


def put(arrays: Sequence[Array], block: Tensor, dtype: torch.dtype, state: Mapping[str, State]) -> None:
    """Writes what :func:`get` gave.

    Raises:
        ValueError: naming the layer, if `state` has other entries or shapes; nothing is written then.
    """
    held = [array for array in arrays if array.kind != "counter"]
    names = dict.fromkeys(array.layer for array in held)
    if not isinstance(state, Mapping) or state.keys() != names.keys():
        got = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state must have an entry for each layer, {', '.join(names)}, got {got or 'none'}")
    given: list[Tensor] = []
    for name in names:
        wanted = [_shape(array, len(block)) for array in held if array.layer == name]
        tensors = state[name]
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in tensors]
        if shapes != wanted:
            raise ValueError(f"state of layer {name!r} must be tensors of {wanted}, got {shapes}")
        given += tensors
    for array, values in zip(held, given, strict=True):
        if array.kind == "bits" and not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(f"state of layer {array.layer!r}: spikes must be 0 or 1")
    for array, values in zip(held, given, strict=True):
        inner = len(array.shape) - (array.kind == "ring")
        flat = values.detach().to("cpu", dtype).flatten(-inner)[..., array.order]
        if array.kind == "bits":
            packed = pack_bits(flat)
            block[:, array.offset : array.offset + packed.shape[1]] = packed
        else:
            flat = flat.transpose(0, 1).flatten(1) if array.kind == "ring" else flat
            _view(block, array, dtype).copy_(flat)
    for array in arrays:
        if array.kind == "counter":
            _view(block, array, torch.int64).zero_()


def _shape(array: Array, batch: int) -> tuple[int, ...]:
    if array.kind == "ring":
        return (array.shape[0], batch, *array.shape[1:])
    return (batch, *array.shape)


def _view(block: Tensor, array: Array, dtype: torch.dtype) -> Tensor:
    """The array of all samples, ``[batch, numbers]``, in place."""
    size = dtype.itemsize
    first = array.offset // size
    return block.view(dtype)[:, first : first + prod(array.shape)]
