"""What the products of a convolution take on this machine."""

from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional

from hibana.events import cost
from hibana.events.bits import bits_of
from hibana.events.convolution import autograd
from hibana.events.linear import product
from hibana.events.linear.measured import WORK, about
from hibana.events.planes import Planes

__all__ = ["costs"]


def costs(images: int, outputs: int, geometry: autograd.Geometry) -> cost.Costs | None:
    """Of so many images, to so many channels; None where nothing is measured."""
    images = about(images)
    key = ("convolution", images, outputs, *geometry)
    return cost.costs_of(key, lambda: _measured(images, outputs, geometry))


def _measured(images: int, outputs: int, geometry: autograd.Geometry) -> cost.Costs:
    (height, width), (down, across) = geometry.image, geometry.output
    channels, kernel = geometry.channels, geometry.kernel
    inputs = channels * kernel[0] * kernel[1]
    timed = min(images, max(1, WORK // (down * across * inputs * outputs)))
    generator = torch.Generator("cpu").manual_seed(0)
    made = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    last = {"memory_format": torch.channels_last}
    numbers = made(timed, channels, height, width).contiguous(**last)
    gradient = made(timed, outputs, down, across).contiguous(**last)
    weight = made(outputs, channels, *kernel)
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
    lines = autograd.rows_of(numbers)
    planes = [
        Planes(cost.random_bits(timed * height, width * channels, density, generator)[None], density)
        for density in cost.DENSITIES
    ]
    how = geometry.stride, geometry.padding, geometry.dilation

    def backward(which: list[bool]) -> object:
        return torch.ops.aten.convolution_backward(
            gradient, numbers, weight, None, *how, False, [0, 0], 1, [*which, False]
        )

    def of_weights(input_: Planes) -> object:
        windows = autograd.windows_of(input_.bits, geometry)
        return product.weight_gradient(windows, input_.density, rows, inputs, False)

    dense: list[cost.Call] = [
        partial(functional.conv2d, numbers, weight, None, *how),
        partial(backward, [True, True]),  # in which torch shares work, so that weights cost what they add
        partial(backward, [True, False]),
    ]
    forward = [partial(autograd.forward, p, weight, None, geometry) for p in planes]
    weights = [partial(of_weights, p) for p in planes]
    input_ = [partial(autograd.input_gradient, p.bits[0], weight, rows, geometry) for p in planes]
    flat = weight.permute(0, 2, 3, 1).reshape(outputs, -1)
    one = torch.zeros(1, -(-inputs // 64), dtype=torch.int64, device="cpu")
    once = (
        partial(product.forward, one, 0.0, flat, None),
        partial(product.weight_gradient, one, 0.0, rows[:1], inputs, False),
    )
    costs = cost.timed(images / timed, dense, (forward, weights, input_), once, lambda: bits_of(lines))
    added = max(costs.weights.dense - costs.input.dense, cost.LEAST)
    return replace(costs, weights=replace(costs.weights, dense=added))
