"""Encodings of values as currents or spikes over time, ``[T, batch, ...]``.

Each coding is a function ``(values, steps, ...) -> [steps, *values.shape]``. The exception is :func:`delta`,
whose input has a time axis. Outputs have the device and dtype of the input; random codings take a
``torch.Generator``. Encodings have no parameters and no state.

>>> import torch
>>> from hibana import encode
>>> encode.latency(torch.tensor([1.0, 0.5, 0.0]), steps=3)
tensor([[1., 0., 0.],
        [0., 1., 0.],
        [0., 0., 0.]])
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hibana.cells.peer_aliases import check_argument_names
from hibana.cells.values import positive

__all__ = ["constant", "delta", "latency", "named", "poisson", "population"]

Coding = Callable[[Tensor, int], Tensor]
"""A coding with its options bound: ``(values, steps) -> [steps, *values.shape]``."""


@check_argument_names
def constant(values: Tensor, steps: int) -> Tensor:
    """The same current at each step, ``x_t = values``: direct coding, ``[steps, *values.shape]``.

    The time axis has stride zero: nothing is copied, and layers that support it multiply once.

    Raises:
        TypeError: if `values` is not a floating-point tensor.
        ValueError: if `steps` is not at least 1.

    Source: Rueckauer, Lungu, Hu, Pfeiffer & Liu (2017), *Conversion of continuous-valued deep networks to
    efficient event-driven networks for image classification* (analog input).

    >>> import torch
    >>> constant(torch.rand(2, 3), steps=8).stride()
    (0, 3, 1)
    """
    _check(values, steps)
    return values.expand(steps, *values.shape)


@check_argument_names
def poisson(values: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Independent spikes at each step with probability `values`: ``P(s_t = 1) = values``.

    The Bernoulli form of a Poisson spike train of rate `values`, in spikes per step: the count over time is
    binomial, with mean ``steps * values``.

    Args:
        values: ``[batch, ...]`` in [0, 1].
        steps: number of steps.
        generator: a generator on the device of `values`; the same seed gives the same spikes on the same kind
            of device.

    Raises:
        TypeError: if `values` is not a floating-point tensor.
        ValueError: if `steps` is not at least 1, or `values` leaves [0, 1].

    Source: Dayan & Abbott (2001), *Theoretical neuroscience*, chapter 1.

    >>> import torch
    >>> poisson(torch.tensor([0.0, 1.0]), steps=2, generator=torch.Generator().manual_seed(0))
    tensor([[0., 1.],
            [0., 1.]])
    """
    _check(values, steps)
    _check_unit_interval(values)
    return torch.bernoulli(values.detach().expand(steps, *values.shape), generator=generator)


@check_argument_names
def latency(values: Tensor, steps: int, *, tau: float | None = None, threshold: float = 0.01) -> Tensor:
    """One spike per value; larger values spike earlier.

        t = round((steps - 1) * (1 - values))                          without `tau`: linear
        t = round(tau * log(values / (values - threshold)))            with `tau`: the time at which a leaky
                                                                       membrane with the current `values`
                                                                       reaches `threshold`

    Args:
        values: ``[batch, ...]`` in [0, 1]. Zero never spikes. With `tau`, a value does not spike either if it
            is at most `threshold`, or if its time is `steps` or later.
        steps: number of steps.
        tau: the membrane time constant in steps.
        threshold: the potential at which the membrane spikes; only used with `tau`.

    Raises:
        TypeError: if `values` is not a floating-point tensor.
        ValueError: if `steps`, `tau` or `threshold` is not positive, or `values` leaves [0, 1].

    Source: Thorpe, Delorme & Van Rullen (2001), *Spike-based strategies for rapid processing*; the membrane's
    time solves ``tau dv/dt = values - v`` from ``v = 0``.
    """
    _check(values, steps)
    _check_unit_interval(values)
    if tau is None:
        times = ((steps - 1) * (1 - values)).round()
        spiking = values > 0
    else:
        positive("tau", tau)
        positive("threshold", threshold)
        spiking = values > threshold
        above = torch.where(spiking, values, 2 * threshold)
        times = (tau * torch.log(above / (above - threshold))).round()
    clock = torch.arange(steps, dtype=torch.int64, device=values.device).reshape(-1, *[1] * values.ndim)
    return ((clock == times) & spiking).to(values.dtype)


@check_argument_names
def delta(signal: Tensor, threshold: float) -> Tensor:
    """On and off spikes when a signal differs by more than `threshold` from its value at the last spike.

        on_t  = H(x_t - r_(t-1) - threshold),   off_t = H(r_(t-1) - x_t - threshold),
        r_t   = r_(t-1) + threshold * (on_t - off_t),   r_0 = x_0

    There is at most one spike per step and channel. If the signal changes by at most `threshold` per step,
    it differs from ``x_0 + threshold * cumsum(on - off)`` by at most `threshold`.

    Args:
        signal: ``[T, batch, ...]``.
        threshold: in units of the signal.

    Returns:
        ``[T, batch, 2, ...]``: on spikes, then off spikes; no spikes at the first step.

    Raises:
        TypeError: if `signal` is not a floating-point tensor.
        ValueError: if `signal` has fewer than two dimensions, or `threshold` is not positive.

    Source: Yang, Liu & Delbruck (2015), *A dynamic vision sensor with 1% temporal contrast sensitivity and
    in-pixel asynchronous delta modulator for event encoding*, here sampled in steps.

    >>> import torch
    >>> signal = torch.tensor([0.0, 0.6, 1.2, 0.4]).reshape(4, 1)
    >>> delta(signal, threshold=0.5)[:, 0]  # [T, on and off]
    tensor([[0., 0.],
            [1., 0.],
            [1., 0.],
            [0., 1.]])
    """
    if not isinstance(signal, Tensor) or not signal.is_floating_point():
        raise TypeError(f"signal must be a floating-point tensor [T, batch, ...], got {_kind(signal)}")
    if signal.ndim < 2 or signal.shape[0] == 0:
        raise ValueError(f"signal must be [T, batch, ...] with T at least 1, got shape {tuple(signal.shape)}")
    positive("threshold", threshold)
    reference = signal[0]
    spikes = []
    for value in signal:
        on = (value - reference > threshold).to(signal.dtype)
        off = (reference - value > threshold).to(signal.dtype)
        reference = reference + threshold * (on - off)
        spikes.append(torch.stack([on, off], dim=1))
    return torch.stack(spikes)


@check_argument_names
def population(
    values: Tensor,
    steps: int,
    *,
    neurons: int = 8,
    low: float = 0.0,
    high: float = 1.0,
    overlap: float = 1.5,
    coding: Coding = latency,
) -> Tensor:
    """Encodes each value by the activations of `neurons` overlapping Gaussian receptive fields.

        a_i = exp(-(x - c_i)^2 / (2 sigma^2)),   sigma = (high - low) / (overlap * (neurons - 2)),
        c_i = low + (2i - 1)/2 * (high - low)/(neurons - 2),   i = 0 ... neurons - 1

    Args:
        values: ``[batch, ...]``.
        steps: number of steps.
        neurons: receptive fields per value, at least 3.
        low: expected minimum of `values`.
        high: expected maximum of `values`.
        overlap: inverse width of the fields, usually 1 to 2.
        coding: the coding of the activations, which lie in [0, 1].

    Returns:
        ``[steps, batch, ..., neurons]``.

    Raises:
        TypeError: if `values` is not a floating-point tensor.
        ValueError: if `steps`, `neurons` or `overlap` is outside its range, or `low` is not below `high`.

    Source: Bohte, Kok & La Poutré (2002), *Error-backpropagation in temporally encoded networks of spiking
    neurons*.

    >>> import torch
    >>> population(torch.tensor([[0.5]]), steps=5, neurons=4, coding=constant)[0, 0, 0]
    tensor([0.0796, 0.7548, 0.7548, 0.0796])
    """
    _check(values, steps)
    if isinstance(neurons, bool) or not isinstance(neurons, int) or neurons < 3:
        raise ValueError(f"neurons must be an integer of at least 3, got {neurons!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low!r} and {high!r}")
    positive("overlap", overlap)
    spacing = (high - low) / (neurons - 2)
    order = torch.arange(neurons, device=values.device, dtype=values.dtype)
    centres = low + (order - 0.5) * spacing
    distance = (values.unsqueeze(-1) - centres) / (spacing / overlap)
    return coding(torch.exp(-0.5 * distance * distance), steps)


_CODINGS: list[Callable[..., Tensor]] = [constant, poisson, latency, population]
_BY_NAME = {coding.__name__: coding for coding in _CODINGS}


def named(name: str) -> Callable[..., Tensor]:
    """The coding called `name`, for values without a time axis.

    Raises ValueError if no coding has this name; the message lists all names.
    """
    if name not in _BY_NAME:
        raise ValueError(f"coding must be one of {', '.join(_BY_NAME)}; got {name!r}")
    return _BY_NAME[name]


def _kind(value: object) -> str:
    """The dtype of a tensor, or the class name of another object, for error messages."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check(values: Tensor, steps: int) -> None:
    """Raises if `values` is not a floating-point tensor or `steps` not a positive integer."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        hint = "use values.float()" if isinstance(values, Tensor) else "the arguments are values, steps"
        raise TypeError(f"values must be a floating-point tensor, got {_kind(values)}; {hint}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")


def _check_unit_interval(values: Tensor) -> None:
    """Raises if a value is outside [0, 1]."""
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"values must lie in [0, 1], got {values.min().item():.4g} to {values.max().item():.4g}"
        )
