"""The layout of a step's parameters for a kernel: a scalar, one number per neuron, or a repeating row."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["patterns_of", "written_out"]


def patterns_of(parameters: Sequence[Tensor], neurons: int) -> tuple[int, ...]:
    """How many neurons each is given for, over and over; 0, if for each or as one number."""
    whole = (1, neurons)
    return tuple([0 if (count := parameter.numel()) in whole else count for parameter in parameters])


def written_out(parameters: Sequence[Tensor], patterns: Sequence[int], neurons: int) -> list[Tensor]:
    """`parameters` of which those that repeat, as `patterns` say, are given for each of the `neurons`."""
    return [
        parameter.as_strided((neurons // length, length), (0, 1)).reshape(-1) if length else parameter
        for parameter, length in zip(parameters, patterns, strict=True)
    ]
