"""Data for figures that never change: drawn by NumPy's generators, whose streams are stable."""

import numpy as np
import torch

import hibana as hb


def uniform(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def spikes(*shape, rate=0.1, seed=0):
    return (uniform(*shape, seed=seed) < rate).float()


def recording(steps=100):
    """Potential and spikes of a leaky neuron, ``[T]``."""
    states = hb.record(hb.LIFCell(tau=20.0), uniform(steps) / 6)
    return states["v"], states["s"]


def layers(steps=100):
    """The spikes of two layers; neurons of the second have different rates."""
    first, second = (60, 30)
    even = spikes(steps, first, rate=0.08)
    uneven = (uniform(steps, second, seed=1) < torch.linspace(0, 0.2, second)).float()
    return {"if1": even, "if2": uneven}


def gabors(count=9, side=12):
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    angles = torch.arange(count)[:, None, None] * torch.pi / count
    across = x * torch.cos(angles) + y * torch.sin(angles)
    return torch.cos(6 * across) * torch.exp(-3 * (x * x + y * y))
