"""How a step's parameters lie for a kernel: one number for all, one a neuron, or a row that repeats."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["laid", "patterns_of"]


def patterns_of(parameters: Sequence[Tensor], neurons: int) -> tuple[int, ...]:
    """How many neurons each is given for, over and over; 0, if for each or as one number."""
    counts = [parameter.numel() for parameter in parameters]
    return tuple([0 if count in (1, neurons) else count for count in counts])


def laid(parameters: Sequence[Tensor], patterns: Sequence[int], neurons: int, width: int) -> list[Tensor]:
    """`parameters` as a kernel reads them: what repeats, for a row of `width` or, if it is 0, for all."""
    return [
        parameter.expand((width or neurons) // length, length).reshape(-1) if length else parameter
        for parameter, length in zip(parameters, patterns, strict=True)
    ]
