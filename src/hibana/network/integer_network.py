"""A network that computes in whole numbers, as a module."""

import torch
from torch import Tensor, nn

from hibana.network.straight import straight_through
from hibana.spikes.checks import is_constant_over_time

__all__ = ["Quantized", "integer_input"]


def integer_input(inputs: Tensor, scale: float, range_: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``clamp(round(x / scale), low, high)`` of ``[T, ...]``, with the gradient of ``x / scale``."""
    if is_constant_over_time(inputs):
        once = integer_input(inputs[:1], scale, range_, dtype)
        return once.expand(len(inputs), *once.shape[1:])
    real = inputs.double() / scale
    return straight_through(real, real.detach().round().clamp(*range_)).to(dtype)


class Quantized(nn.Module):
    """A network in whole numbers, over ``[T, batch, ...]``: what :func:`hibana.quantize` returns.

        forward(x) = scale_out * net(clamp(round(x / scale_in), low, high))

    Inside everything is a whole number, held exactly by the dtype it is computed in, so no sum depends on its
    order: it spikes as the program in C does, bit for bit.
    """

    def __init__(
        self, net: nn.Module, input_scale: float, input_range: tuple[int, int], output_scale: float, bits: int
    ) -> None:
        super().__init__()
        self.net = net
        self.input_scale, self.input_range = input_scale, input_range
        self.output_scale, self.bits = output_scale, bits
        self.steps = 0
        """For how many steps it is proved that nothing overflows."""
        self.dtype = torch.float64
        """In which every number is exact."""

    def integer_input(self, inputs: Tensor) -> Tensor:
        """`inputs` in units of `input_scale`, rounded to integers and clamped to `input_range`."""
        return integer_input(inputs, self.input_scale, self.input_range, self.dtype)

    whole_input = integer_input  # deprecated name, for one release

    def forward(self, inputs: Tensor) -> Tensor:
        """What the network puts out, in the units of the network that it was made of."""
        if len(inputs) > self.steps > 0:
            raise ValueError(
                f"inputs must have at most the {self.steps} steps within which nothing overflows, "
                f"got {len(inputs)}"
            )
        outputs: Tensor = self.net(self.integer_input(inputs))
        return (outputs.double() * self.output_scale).to(inputs.dtype)
