"""What a hyper-parameter may be, and what is refused when a neuron is made."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hibana.cells.surrogate import Surrogate, named
from hibana.runtime import torch_internals

Value = float | Tensor
"""A hyper-parameter: a float, a tensor that broadcasts per neuron, or an ``nn.Parameter``, which is learned.

Time constants and thresholds that are learned stay in their range: :class:`hibana.cells.AtLeast`.
"""
Reset = Value | Literal["subtract"]
"""A potential to reset to (hard), or ``"subtract"``: the threshold is subtracted (soft)."""

Learn = str | Sequence[str]
"""Names of the values that a cell makes parameters of, each in its range: one number for the layer, or one
for each neuron where the value is a tensor (:func:`log_uniform`)."""


def log_uniform(least: float, most: float, *shape: int) -> Tensor:
    """Values spread evenly in their logarithm over [least, most]: a time constant for each neuron.

    A layer whose neurons remember for unlike times need not be told which the task wants.

    Args:
        least: above 0.
        most: `least` or more.
        shape: of the neurons, such as 128.

    Source: Perez-Nieves, Leung, Dragotti & Goodman (2021), *Neural heterogeneity promotes robust learning*
    (time constants that differ from neuron to neuron).

    >>> import hibana as hb
    >>> layer = hb.LIF(tau=hb.log_uniform(2, 100, 128), learn="tau")
    >>> layer.cell.log_tau.shape
    torch.Size([128])
    """
    if not (0 < least <= most and math.isfinite(most)):
        raise ValueError(f"least and most must be 0 < least <= most, finite, got {least!r} and {most!r}")
    logarithms = torch.empty(shape, dtype=torch.get_default_dtype(), device=None)
    return logarithms.uniform_(math.log(least), math.log(most)).exp().clamp(least, most)


def between(name: str, value: Value, least: float, most: float) -> Value:
    """`value`, if each of its elements lies in [least, most]."""
    return _checked(name, value, lambda v: (v >= least) & (v <= most), f"must lie in [{least}, {most}]")


def positive(name: str, value: Value) -> Value:
    """`value`, if each of its elements is positive and finite; a number as a float."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
    real = not isinstance(value, Tensor) or value.is_floating_point()
    return _checked(name, value, lambda v: real & (v > 0) & (v < math.inf), "must be positive and finite")


def finite(name: str, value: Value) -> Value:
    """`value`, if each of its elements is finite."""
    return _checked(name, value, lambda v: abs(v) < math.inf, "must be finite")


def time_constant(name: str, value: Value) -> Value:
    """`value`, if each of its elements is a time constant of at least one step."""
    if isinstance(value, float) and value == math.inf:
        return value
    positive(name, value)
    return _checked(name, value, lambda v: v >= 1, "is in time steps and must be at least 1")


def _checked(name: str, value: Value, holds: Callable[[Any], Any], wanted: str) -> Value:
    """`value`, if it is a number or a tensor, each element of which `holds` accepts."""
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
    if isinstance(value, Tensor):
        right = not _has_values(value) or bool(holds(value).all())
    else:
        right = holds(value)
    if not right:
        raise ValueError(f"{name} {wanted}, got {value!r}")
    return value


def checked_surrogate(surrogate: Surrogate | str) -> Surrogate:
    """`surrogate`, if it is one, or the one of that name."""
    if isinstance(surrogate, str):
        return named(surrogate)
    if isinstance(surrogate, type) and issubclass(surrogate, Surrogate):
        raise TypeError(f"surrogate must be an object, {surrogate.__name__}(), got the class")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a hibana.surrogate.Surrogate or its name, got {surrogate!r}")
    return surrogate


def checked_reset(reset: Reset) -> Reset:
    """`reset`, if it is a potential or ``"subtract"``."""
    if isinstance(reset, Tensor) or reset == "subtract":
        return reset
    if isinstance(reset, bool) or not isinstance(reset, int | float) or not math.isfinite(reset):
        raise ValueError(f'reset must be a finite potential or "subtract", got {reset!r}')
    return reset


def _has_values(value: Tensor) -> bool:
    """Whether `value` holds numbers, rather than the shape of some that are loaded later, or never."""
    return not value.is_meta and not torch_internals.is_fake(value)
