"""Sequences of variable length in one batch: padded at their ends, and known by how many steps are theirs.

What hibana computes over time is causal: what stands after the end of a sample changes nothing before it. So
a padded batch goes through a network as it is, and whatever sums over time is told the lengths.

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
    """Sequences ``[T_i, ...]`` as one batch ``[T, batch, ...]`` with zeros after their ends, and the lengths.

    Raises:
        ValueError: if there are none, one has no steps, or their steps differ in shape.
    """
    shapes = [tuple(sequence.shape) for sequence in sequences]
    right = all(shape and shape[0] > 0 and shape[1:] == shapes[0][1:] for shape in shapes)
    if not shapes or not right:
        raise ValueError(
            f"sequences must be [T, ...], of steps of one shape, at least one; got shapes {shapes}"
        )
    lengths = torch.tensor([shape[0] for shape in shapes], dtype=torch.int64, device=sequences[0].device)
    return pad_sequence(list(sequences)), lengths


def checked(lengths: Tensor, over_time: Tensor) -> Tensor:
    """`lengths`, if they are those of the samples of `over_time`, ``[T, batch, ...]``.

    Raises:
        TypeError: if they are no whole numbers.
        ValueError: if they are not one for each sample, in [1, T].
    """
    steps, batch = over_time.shape[:2]
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be whole numbers of steps, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must be one for each sample, [{batch}], got shape {tuple(lengths.shape)}")
    if batch and (int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise ValueError(
            f"lengths must lie in [1, {steps}], the steps that there are, got {lengths.tolist()}"
        )
    return lengths.to(over_time.device)


def within(lengths: Tensor, over_time: Tensor) -> Tensor:
    """Which steps of `over_time` are a sample's own: truth values ``[T, batch, 1, ...]``.

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
    """`over_time`, ``[T, batch, ...]``, with `value` after the end of each sample, if there are lengths."""
    return over_time if lengths is None else over_time.masked_fill(~within(lengths, over_time), value)


def last(outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The output of each sample at its last step, ``[batch, ...]``."""
    if lengths is None:
        return outputs[-1]
    lengths = checked(lengths, outputs)
    return outputs[lengths - 1, torch.arange(outputs.shape[1], dtype=torch.int64, device=outputs.device)]
