"""Batches of sequences of different lengths: padded at their ends, with a tensor of their lengths.

hibana's layers are causal: steps after the end of a sample don't affect earlier steps. A padded batch can
therefore run through a network unchanged, and only functions that sum over time need the lengths.

>>> import torch
>>> inputs, lengths = pad([torch.ones(2, 3), torch.ones(4, 3)])
>>> inputs.shape, lengths
(torch.Size([4, 2, 3]), tensor([2, 4]))
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["checked", "last", "masked", "pad", "within"]


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch ``[T, batch, ...]`` of sequences ``[T_i, ...]`` with zeros after their ends, and the lengths.

    Raises ValueError if there is no sequence, one has no steps, or their steps differ in shape.
    """
    shapes = [tuple(sequence.shape) for sequence in sequences]
    have_one_shape = all(shape and shape[0] > 0 and shape[1:] == shapes[0][1:] for shape in shapes)
    if not shapes or not have_one_shape:
        raise ValueError(
            f"sequences must be [T, ...], of steps of one shape, at least one; got shapes {shapes}"
        )
    lengths = torch.tensor([shape[0] for shape in shapes], dtype=torch.int64, device=sequences[0].device)
    return pad_sequence(list(sequences)), lengths


def checked(lengths: Tensor, over_time: Tensor) -> Tensor:
    """Checks the lengths of the samples of `over_time`, ``[T, batch, ...]``; returns them on its device.

    Raises:
        TypeError: if `lengths` are not integers.
        ValueError: if `lengths` has another shape than ``[batch]``, or values outside [1, T].
    """
    steps, batch = over_time.shape[:2]
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be whole numbers of steps, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must be one for each sample, [{batch}], got shape {tuple(lengths.shape)}")
    if batch and (int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise ValueError(f"lengths must lie in [1, {steps}], the number of steps, got {lengths.tolist()}")
    return lengths.to(over_time.device)


def within(lengths: Tensor, over_time: Tensor) -> Tensor:
    """Booleans ``[T, batch, 1, ...]``: whether a step of `over_time` is before the end of the sample.

    >>> import torch
    >>> within(torch.tensor([1, 3]), torch.zeros(3, 2)).int()
    tensor([[1, 1],
            [0, 1],
            [0, 1]], dtype=torch.int32)
    """
    lengths = checked(lengths, over_time)
    steps = torch.arange(over_time.shape[0], dtype=torch.int64, device=over_time.device)
    inside = steps[:, None] < lengths
    return inside.view(*inside.shape, *[1] * (over_time.ndim - 2))


def masked(over_time: Tensor, lengths: Tensor | None, value: float = 0.0) -> Tensor:
    """`over_time`, ``[T, batch, ...]``, with `value` after the ends of samples that have `lengths`."""
    return over_time if lengths is None else over_time.masked_fill(~within(lengths, over_time), value)


def last(outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The output ``[batch, ...]`` of each sample at its last step, from outputs ``[T, batch, ...]``."""
    if lengths is None:
        return outputs[-1]
    lengths = checked(lengths, outputs)
    return outputs[lengths - 1, torch.arange(outputs.shape[1], dtype=torch.int64, device=outputs.device)]
