"""Types of hyperparameters, and the checks of their values in a cell's ``__init__``."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hibana.cells.surrogate import Surrogate, named
from hibana.runtime import torch_internals

Value = float | Tensor
"""A hyperparameter: a float, a tensor with one value per neuron, or an ``nn.Parameter``, which is learned.

Learned time constants and thresholds stay in their range: :class:`hibana.cells.AtLeast`.
"""
Reset = Value | Literal["subtract"]
"""A potential to reset to (hard), or ``"subtract"``: the threshold is subtracted (soft)."""

Learn = str | Sequence[str]
"""Names of the values that a cell learns, each in its range: one number for the layer, or one per neuron if
the value is a tensor (:func:`log_uniform`)."""


def log_uniform(least: float, most: float, *shape: int) -> Tensor:
    """Random values, log-uniform over [least, most], such as one time constant per neuron.

    A layer with many different time constants needs no tuning of a single one.

    Args:
        least: lower bound, above 0.
        most: upper bound, at least `least`.
        shape: shape of the neurons, such as 128.

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
    """`value`; raises ValueError unless all its elements are in [least, most]."""
    return _checked(name, value, lambda v: (v >= least) & (v <= most), f"must lie in [{least}, {most}]")


def positive(name: str, value: Value) -> Value:
    """`value`, a number as a float; raises ValueError unless all its elements are positive and finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
    is_real = not isinstance(value, Tensor) or value.is_floating_point()
    return _checked(name, value, lambda v: is_real & (v > 0) & (v < math.inf), "must be positive and finite")


def finite(name: str, value: Value) -> Value:
    """`value`; raises ValueError unless all its elements are finite."""
    return _checked(name, value, lambda v: abs(v) < math.inf, "must be finite")


def time_constant(name: str, value: Value) -> Value:
    """`value`; raises ValueError unless all its elements are time constants of at least one step."""
    if isinstance(value, float) and value == math.inf:
        return value
    positive(name, value)
    return _checked(name, value, lambda v: v >= 1, "is in time steps and must be at least 1")


def _checked(name: str, value: Value, is_valid: Callable[[Any], Any], requirement: str) -> Value:
    """`value`; raises TypeError if it is no number or tensor, ValueError unless all elements are valid."""
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
    if isinstance(value, Tensor):
        valid = not _has_values(value) or bool(is_valid(value).all())
    else:
        valid = is_valid(value)
    if not valid:
        raise ValueError(f"{name} {requirement}, got {value!r}")
    return value


def checked_surrogate(surrogate: Surrogate | str) -> Surrogate:
    """`surrogate`, or the built-in one with that name; raises TypeError for other objects."""
    if isinstance(surrogate, str):
        return named(surrogate)
    if isinstance(surrogate, type) and issubclass(surrogate, Surrogate):
        raise TypeError(f"surrogate must be an object, {surrogate.__name__}(), got the class")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a hibana.surrogate.Surrogate or its name, got {surrogate!r}")
    return surrogate


def checked_reset(reset: Reset) -> Reset:
    """`reset`; raises ValueError unless it is a finite potential or ``"subtract"``."""
    if isinstance(reset, Tensor) or reset == "subtract":
        return reset
    if isinstance(reset, bool) or not isinstance(reset, int | float) or not math.isfinite(reset):
        raise ValueError(f'reset must be a finite potential or "subtract", got {reset!r}')
    return reset


def _has_values(value: Tensor) -> bool:
    """Whether `value` holds numbers: it is neither a meta nor a fake tensor."""
    return not value.is_meta and not torch_internals.is_fake(value)
