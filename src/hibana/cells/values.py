"""What a hyper-parameter may be, and what is refused when a neuron is made."""

import math
from typing import Literal

from torch import Tensor

from hibana.surrogate import Surrogate, named

__all__ = ["Reset", "Value", "checked_reset", "checked_surrogate", "finite", "positive", "time_constant"]

Value = float | Tensor
"""A hyper-parameter: a float, a tensor that broadcasts per neuron, or an ``nn.Parameter``, which is learned.

Time constants and thresholds that are learned stay in their range: :class:`hibana.cells.AtLeast`.
"""
Reset = Value | Literal["subtract"]
"""A potential to reset to (hard), or ``"subtract"``: the threshold is subtracted (soft)."""


def positive(name: str, value: Value) -> Value:
    """`value`, if each of its elements is positive and finite."""
    _check_type(name, value)
    if isinstance(value, Tensor):
        right = value.is_floating_point() and (
            not _has_values(value) or bool(((value > 0) & value.isfinite()).all())
        )
    else:
        value = float(value)
        right = math.isfinite(value) and value > 0
    if not right:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def finite(name: str, value: Value) -> Value:
    """`value`, if each of its elements is finite."""
    _check_type(name, value)
    if isinstance(value, Tensor):
        right = not _has_values(value) or bool(value.isfinite().all())
    else:
        right = math.isfinite(value)
    if not right:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


def time_constant(name: str, value: Value) -> Value:
    """`value`, if each of its elements is a time constant of at least one step."""
    if isinstance(value, float) and value == math.inf:
        return value
    positive(name, value)
    right = not _has_values(value) or bool((value >= 1).all()) if isinstance(value, Tensor) else value >= 1
    if not right:
        raise ValueError(f"{name} is in time steps and must be at least 1, got {value!r}")
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


def _check_type(name: str, value: Value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")


def _has_values(value: Tensor) -> bool:
    """Whether `value` holds numbers, rather than the shape of some that are loaded later, or never."""
    from torch._subclasses.fake_tensor import is_fake

    return not value.is_meta and not is_fake(value)
