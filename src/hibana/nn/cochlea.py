"""Sound as spikes of a model of the inner ear: basilar membrane, hair cells, auditory nerve, bushy cells.

Here are the equations alone; what reads files of sound is :mod:`hibana.data`. The constants are those of the
converter that the spiking Heidelberg digits were made with.
"""

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hibana.runtime.extras import needing

__all__ = ["CHANNELS", "cochlea"]

Numbers: TypeAlias = "np.ndarray[Any, Any]"

CHANNELS = 700
LEVEL = 0.3
"""Root mean square that each sound is scaled to."""
LENGTH, HEIGHT = 3.5, 0.1
"""Of the cochlea, in cm."""
STIFFNESS, LEAST, SLOPE = 1e8, 3500.0, 3.0
"""``S(x) = STIFFNESS e^(-SLOPE x) - LEAST``, in g s^-2 cm^-2, x in cm."""
MASS, DAMPING, DENSITY = 0.05, 0.15, 1.0
"""g cm^-2; without unit; g cm^-3."""
PLACES = 700
"""At which the travelling wave is computed."""
RESPONSE = 0.25
"""Seconds of the membrane's response to a click, at least."""
FREQUENCIES_AT_ONCE = 256
CHANNELS_AT_ONCE = 50
FIBRES = 40
"""Of the auditory nerve that meet in a bushy cell."""
REFRACTORY = 1e-3
"""Seconds, of fibres and of bushy cells."""
MEMBRANE, SYNAPSE, WEIGHT = 1e-3, 5e-4, 13e3
"""Time constants of a bushy cell in seconds, and what all its fibres weigh together, in 1/s."""


@needing("hibana.encode.cochlea")
def cochlea(
    sound: Tensor,
    rate: float,
    *,
    channels: int = CHANNELS,
    step: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Spikes of bushy cells, which a model of the inner ear drives by `sound`: ``[T, (batch,) channels]``.

    A wave travels along the basilar membrane (shallow water; stiffness S, mass m, damping R at the place x,
    h the height of the fluid and rho its density)::

        xi = S(x) - m w^2 + i w R(x),   g = w sqrt(2 rho / (h xi)),   G = (2 / alpha) g(0) + int_0^x g dx
        p(x) = sqrt(G / g) H0(G),       v(x) = 2 i w / xi  p(x) / p(0)  Z(w)

    (H0 the Hankel function of the second kind, Z the cochlea's input impedance). The velocity v releases
    transmitter from a hair cell (q is free, c in the cleft, w taken up again)::

        k = g (v + A) / (v + A + B),   dq/dt = y (1 - q) - k q + x w,
        dc/dt = k q - (l + r) c,       dw/dt = r c - x w

    to which 40 fibres answer with probability ``h c dt``, not within 1 ms of their last spike. A bushy cell
    is a leaky integrate-and-fire neuron of 1 ms with synapses of 0.5 ms and 1 ms refractory time.

    It differs from the converter of the Heidelberg data sets in this: the wave is causal, all frequencies up
    to ``rate / 2`` are used, and no window is laid over the recording. So spikes are like those of the data
    sets, and not the same.

    Args:
        sound: samples, ``[N]`` or ``[batch, N]``. Each sound is scaled to one loudness (RMS).
        rate: samples in a second, at least 2,000.
        channels: places along the membrane, from the base, where high tones are, to the apex.
        step: seconds of a step. A step with several spikes is 1.
        generator: of the CPU; the same seed gives the same spikes.

    Returns:
        0 and 1 in the dtype of `sound`, ``T = ceil(N / (rate * step))``.

    Raises:
        TypeError: if `sound` is no floating-point tensor.
        ValueError: if a shape, number or option makes no sense.
        ModuleNotFoundError: if scipy, of the extra ``train``, is not installed.

    Source: Cramer, Stradmann, Schemmel & Zenke (2022), *The Heidelberg spiking data sets for the systematic
    evaluation of spiking neural networks*; the membrane after Sieroka, Dosch & Rupp (2006), *Semirealistic
    models of the cochlea*; hair cells after Meddis (1986, 1988), *Simulation of mechanical to neural
    transduction in the auditory receptor*.

    >>> import torch
    >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(800) / 8000)
    >>> cochlea(tone, 8000, channels=70).shape
    torch.Size([100, 70])
    """
    if not isinstance(sound, Tensor) or not sound.is_floating_point():
        kind = sound.dtype if isinstance(sound, Tensor) else type(sound).__name__
        raise TypeError(f"sound must be a floating-point tensor, got {kind}")
    if sound.ndim not in (1, 2) or not sound.numel() or not bool(sound.isfinite().all()):
        raise ValueError(f"sound must be finite, [N] or [batch, N], not empty, got {tuple(sound.shape)}")
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels must be an integer of at least 1, got {channels!r}")
    if not (math.isfinite(rate) and rate >= 2000):
        raise ValueError(f"rate must be at least 2,000 samples in a second, got {rate!r}")
    if not (math.isfinite(step) and step * rate >= 1):
        raise ValueError(f"step must be at least the {1 / rate:g} s of a sample, got {step!r}")
    if sound.ndim == 2:
        each = [
            cochlea(one, rate, channels=channels, step=step, generator=generator) for one in sound.unbind()
        ]
        return torch.stack(each, dim=1)
    seed = int(torch.randint(1 << 62, (), generator=generator, dtype=torch.int64, device="cpu"))
    samples = sound.detach().cpu().double().numpy()
    loudness = float(np.sqrt(np.mean(samples**2)))
    velocity = _velocity(samples * (LEVEL / loudness if loudness else 0.0), rate, channels)
    spikes = _bushy(_fibres(_released(velocity, rate), rate, np.random.default_rng(seed)), rate)
    steps = math.ceil(len(samples) / (rate * step) - 1e-9)
    binned = np.zeros((steps, channels), dtype=bool)
    at, channel = np.nonzero(spikes)
    binned[np.minimum((at / (rate * step)).astype(np.int64), steps - 1), channel] = True
    return torch.from_numpy(binned).to(sound)


def _velocity(samples: Numbers, rate: float, channels: int) -> Numbers:
    """The membrane's velocity at each place, ``[N, channels]``."""
    responses = _responses(rate, channels)
    size = 1 << (len(samples) + responses.shape[1] - 1).bit_length()
    spectrum = np.fft.rfft(samples, size)
    found = np.empty((len(samples), channels))
    for first in range(0, channels, CHANNELS_AT_ONCE):
        part = responses[first : first + CHANNELS_AT_ONCE]
        moved = np.fft.irfft(np.fft.rfft(part, size) * spectrum, size)
        found[:, first : first + len(part)] = moved[:, : len(samples)].T
    return found


@lru_cache(maxsize=4)
def _responses(rate: float, channels: int) -> Numbers:
    """What the velocity at each place is after a click, ``[channels, N]``."""
    size = 1 << math.ceil(math.log2(RESPONSE * rate))
    omega = 2 * np.pi * np.arange(1, size // 2 + 1) * rate / size
    place = np.linspace(0, LENGTH, channels) if channels > 1 else np.array([LENGTH / 2])
    spectra = np.zeros((channels, size // 2 + 1), dtype=np.complex128)
    for first in range(0, len(omega), FREQUENCIES_AT_ONCE):
        part = slice(first, first + FREQUENCIES_AT_ONCE)
        spectra[:, 1:][:, part] = _wave(omega[part], place)
    found: Numbers = np.fft.irfft(spectra, size)
    found.flags.writeable = False
    return found


def _wave(omega: Numbers, place: Numbers) -> Numbers:
    """``v(x, w)`` of the equations, ``[places, frequencies]``."""
    from scipy.special import hankel2

    x = np.union1d(np.linspace(0, LENGTH, PLACES), place)
    stiffness = STIFFNESS * np.exp(-SLOPE * x[:, None]) - LEAST
    damping = DAMPING * math.sqrt(STIFFNESS * MASS) * np.exp(-SLOPE / 2 * x[:, None])
    xi = stiffness - MASS * omega**2 + 1j * omega * damping
    g = omega * np.sqrt(2 * DENSITY / (HEIGHT * xi))
    way = np.zeros_like(g)
    way[1:] = np.cumsum((g[1:] + g[:-1]) / 2 * np.diff(x)[:, None], axis=0)
    phase = 2 / SLOPE * g[0] + way
    pressure = np.sqrt(phase / g) * hankel2(0, phase)
    entry = 2 * omega / SLOPE * math.sqrt(2 * DENSITY / (HEIGHT * STIFFNESS))
    impedance = 1j * math.sqrt(2 * STIFFNESS * DENSITY / HEIGHT) * hankel2(0, entry) / hankel2(1, entry)
    chosen = np.searchsorted(x, place)
    found: Numbers = (2j * omega / xi * pressure / pressure[0] * impedance)[chosen]
    return found


def _released(velocity: Numbers, rate: float) -> Numbers:
    """The probability with which a fibre spikes at each sample, ``[N, channels]``."""
    a, b, most, replenished, lost, retaken, reprocessed = 5.0, 300.0, 2000.0, 5.05, 2500.0, 6580.0, 66.3
    dt, sensitivity = 1 / rate, 50_000.0
    rest = most * a / (a + b)
    first = replenished * rest / (lost * rest + replenished * (lost + retaken))
    cleft = np.full(velocity.shape[1], first)
    free, taken = cleft * (lost + retaken) / rest, cleft * retaken / reprocessed
    opened = np.maximum(velocity + a, 0)
    permeability = most * opened / (opened + b)
    found = np.empty_like(velocity)
    for t, k in enumerate(permeability):
        released, back = k * free * dt, reprocessed * taken * dt
        free = np.maximum(free + np.maximum(replenished * (1 - free), 0) * dt - released + back, 0)
        taken = np.maximum(taken + retaken * cleft * dt - back, 0)
        cleft = np.maximum(cleft + released - (lost + retaken) * cleft * dt, 0)
        found[t] = cleft
    return np.minimum(found * sensitivity * dt, 1.0)


def _fibres(probability: Numbers, rate: float, draws: np.random.Generator) -> Numbers:
    """How many fibres of each channel spike at each sample, ``[N, channels]``.

    Fibres are alike, so the number of those that are not refractory is all that has to be known of them.
    """
    silent = math.ceil(REFRACTORY * rate)
    counts = np.zeros(probability.shape, dtype=np.int64)
    ready = np.full(probability.shape[1], FIBRES)
    for t, chance in enumerate(probability):
        if t >= silent:
            ready = ready + counts[t - silent]
        counts[t] = draws.binomial(ready, chance)
        ready = ready - counts[t]
    return counts


def _bushy(counts: Numbers, rate: float) -> Numbers:
    """Which bushy cells spike at each sample, ``[N, channels]``."""
    dt = 1 / rate
    keep, keep_current = math.exp(-dt / MEMBRANE), math.exp(-dt / SYNAPSE)
    voltage = np.zeros(counts.shape[1])
    current, silent = voltage.copy(), voltage.copy()
    spikes = np.zeros(counts.shape, dtype=bool)
    for t, count in enumerate(counts):
        spikes[t] = (voltage >= 1) & (silent <= 0)
        silent = np.where(spikes[t], REFRACTORY * rate, silent)
        current = current * keep_current + count
        voltage = np.where(spikes[t], 0.0, voltage * keep) + (silent <= 0) * current * (WEIGHT / FIBRES * dt)
        silent = silent - 1
    return spikes
