"""What a product of spikes is expected to gain over torch's dense product, before either has been timed.

:mod:`hibana.spikes.select` times both; here is what it goes by where it may not, and what warnings and
:func:`hibana.explain` expect of layers that have not been changed yet.
"""

import math

__all__ = ["FORWARD_UP_TO", "INPUT_UP_TO", "SMALLEST_WORK", "WEIGHTS_UP_TO", "gain"]

FORWARD_UP_TO, WEIGHTS_UP_TO, INPUT_UP_TO = 0.6, 0.6, 0.3
"""Densities of bits, over all planes, up to which a product is computed per spike.

Of the dense time at a density of 0.5: sums 0.34 to 0.72, gradients of weights 0.3 to 0.48, of inputs 0.7 to 1.1
(convolutions of 64 to 128 channels, 784-512-512-10; AMD EPYC, Zen 3).
"""
SMALLEST_WORK = 12_000_000
"""Multiplications below which a product always goes to torch: packing bits alone would take longer."""
MOST = 10.0
"""Largest gain that is expected: below 2% density the calls themselves decide."""
FACTOR, EXPONENT = 0.9, -0.62
"""``gain = FACTOR * density ** EXPONENT``: a line, both axes logarithmic, through the medians of 1,100 timed
sums of linear layers and convolutions of half a millisecond and more (AMD EPYC, Zen 3; half of them lie
within a factor of 1.6)."""


def gain(density: float, work: int = SMALLEST_WORK) -> float:
    """How many times as fast as torch's a product of spikes is expected to be, by the faster candidate.

    Args:
        density: share of the input that spiked.
        work: multiplications of the dense product.
    """
    if work < SMALLEST_WORK:
        return 1.0  # computed by torch
    return min(MOST, max(1.0, FACTOR * math.pow(max(density, 1e-6), EXPONENT)))
