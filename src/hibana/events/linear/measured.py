"""What the products of a linear layer take on this machine."""

from functools import partial

import torch

from hibana.events import cost
from hibana.events.bits import bits_of
from hibana.events.lanes.rows import panel
from hibana.events.linear import product

__all__ = ["FEWEST", "WORK", "about", "costs"]

WORK = 1 << 25
"""Multiplications of a dense product that is timed, about: of more rows, so many are."""
FEWEST = 64
"""Rows that are timed at least."""


def costs(rows: int, inputs: int, outputs: int) -> cost.Costs | None:
    """Of so many rows times ``[outputs, inputs]`` weights; None where nothing is measured."""
    rows = about(rows)
    return cost.costs_of(("linear", rows, inputs, outputs), lambda: _measured(rows, inputs, outputs))


def about(count: int) -> int:
    """`count`, rounded down to an eighth of a power of two."""
    step = max(1, 1 << count.bit_length() >> 4)
    return count // step * step


def _measured(rows: int, inputs: int, outputs: int) -> cost.Costs:
    generator = torch.Generator("cpu").manual_seed(0)
    timed = min(rows, max(FEWEST, WORK // (inputs * outputs)))
    made = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    weight, gradient = made(outputs, inputs), made(timed, outputs)
    numbers = made(timed, inputs)
    bits = {density: cost.random_bits(timed, inputs, density, generator) for density in cost.DENSITIES}
    pack = partial(product.packed, weight, panel(outputs))
    table = pack()
    dense: list[cost.Call] = [
        lambda: numbers @ weight.T,
        lambda: gradient.T @ numbers,
        lambda: gradient @ weight,
    ]
    forward = [partial(product.forward, b, density, weight, None) for density, b in bits.items()]
    weights = [
        partial(product.weight_gradient, b, density, gradient, inputs, False) for density, b in bits.items()
    ]
    input_ = [partial(product.input_gradient, b, table, gradient, inputs) for b in bits.values()]
    (least,) = bits[cost.DENSITIES[0]][:1].unsqueeze(0)
    one_row = partial(product.weight_gradient, least, 0.0, gradient[:1], inputs, False)
    return cost.timed(
        rows / timed, dense, (forward, weights, input_), (pack, one_row), lambda: bits_of(numbers)
    )
