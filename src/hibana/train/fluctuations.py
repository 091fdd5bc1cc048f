"""Weights drawn so that fluctuations drive a layer: a threshold some standard deviations above the mean."""

import copy
import math

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import record

__all__ = ["fluctuation_driven_"]

NO_THRESHOLD = 1e30
LONGEST = 20_000
"""Steps within which an input must be over."""
LEFT = 1e-6
"""Of the largest response to one spike, below which it counts as over."""


@torch.no_grad()
def fluctuation_driven_(
    weight: Tensor, cell: Cell, rate: float, *, xi: float = 2.0, mean: float = 0.0, part: float = 1.0
) -> Tensor:
    """Draws `weight` from a normal distribution with which spikes at `rate` let the potential fluctuate.

    With ε_k the potential k steps after an input of 1, without a threshold, and n inputs that spike
    independently with probability p = `rate` in each step, weights of mean μ_W and deviation σ_W give

        mean of v      = n μ_W p Σ ε_k
        variance of v  = n (σ_W² + μ_W²) p (1 - p) Σ ε_k²  +  n σ_W² p² (Σ ε_k)²

    over time, and from neuron to neuron, whose mean inputs differ (the last term, which the paper leaves
    out: at the rate of its Poisson spikes in fine steps it is small). They are drawn such that

        mean of v = `mean`,   deviation of v = sqrt(`part`) (threshold - `mean`) / `xi`

    so the threshold lies `xi` deviations above the mean. Where several sets of weights drive a neuron, each
    gets its part of the variance: 0.9 to those of a layer's input and 0.1 to its recurrent ones, in the
    paper. Of a convolution n are the inputs under its window.

    Args:
        weight: ``[outputs, inputs, ...]``, changed in place.
        cell: of the `outputs` neurons that are driven, with a potential ``v`` that follows its input linearly
            below the threshold. Each neuron's weights are drawn for its own time constants.
        rate: spikes per input and step, in (0, 1].
        xi: standard deviations from mean to threshold, 1 to 3 in the paper.
        mean: of the potential, below the threshold.
        part: of the variance, in (0, 1].

    Returns:
        `weight`.

    Raises:
        ValueError: if a number is out of its range, the cell has no potential ``v`` and threshold or forgets
            nothing, or `mean` alone lets the potential vary more than that.

    Source: Rossbroich, Gygax & Zenke (2022), *Fluctuation-driven initialization for spiking neural network
    training*, equations 4 to 9, here in steps.

    >>> import hibana as hb
    >>> cell = hb.LIFCell(tau=5.0)
    >>> layer = hb.Recurrent(cell, 128)
    >>> below = hb.Linear(40, 128)
    >>> _ = fluctuation_driven_(below.weight, cell, 0.05, part=0.9)
    >>> _ = fluctuation_driven_(layer.recurrent.weight, cell, 0.05, part=0.1)
    """
    if weight.ndim < 2 or weight[0].numel() == 0:
        raise ValueError(f"weight must be [outputs, inputs, ...], got shape {tuple(weight.shape)}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], in spikes per input and step, got {rate!r}")
    if not (math.isfinite(xi) and xi > 0):
        raise ValueError(f"xi must be positive and finite, got {xi!r}")
    if not 0 < part <= 1:
        raise ValueError(f"part must lie in (0, 1], got {part!r}")
    response, threshold = _response(cell, len(weight))
    if not bool((mean < threshold).all()):
        raise ValueError(f"mean must lie below the threshold, got {mean!r}")
    inputs, total = weight[0].numel(), response.sum(dim=0)
    squares = rate * (1 - rate) * response.square().sum(dim=0)
    centre = mean / (inputs * rate * total)
    wanted = part * ((threshold - mean) / xi) ** 2 / inputs
    left = (wanted - centre**2 * squares) / (squares + (rate * total) ** 2)
    if bool((left < 0).any()):
        raise ValueError(f"mean must be nearer to 0 for so few inputs and this xi, got {mean!r}")
    each = len(weight), *[1] * (weight.ndim - 1)
    return weight.normal_().mul_(left.sqrt().view(each)).add_(centre.view(each))


def _response(cell: Cell, neurons: int) -> tuple[Tensor, Tensor]:
    """The potential after an input of 1, ``[steps, neurons]``, without a threshold, and their thresholds."""
    free = copy.deepcopy(cell)
    if not ("v" in free.state_names() and hasattr(free, "threshold")):
        raise ValueError(f"cell must have a potential v and a threshold, {type(cell).__name__} has none")
    threshold = torch.as_tensor(free.threshold, dtype=torch.float64, device="cpu").detach().expand(neurons)
    free.threshold = NO_THRESHOLD
    steps = 64
    while steps < LONGEST:
        impulse = torch.zeros(steps, 1, neurons, dtype=torch.float32, device="cpu")
        impulse[0] = 1.0
        potential = record(free, impulse)["v"][:, 0].double()
        if bool((potential[-1].abs() <= LEFT * potential.abs().amax(dim=0)).all()):
            return potential, threshold
        steps *= 4
    raise ValueError(f"cell must forget an input within {LONGEST:,} steps, and {cell} does not")
