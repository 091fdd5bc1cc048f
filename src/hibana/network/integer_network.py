"""A network that computes in integers, as a module.

The gradient passes straight through the rounding of inputs. Source: Bengio, Léonard & Courville (2013),
*Estimating or propagating gradients through stochastic neurons for conditional computation*.
"""

import torch
from torch import Tensor, nn

from hibana.nn.layers import with_gradient
from hibana.spikes.checks import is_constant_over_time

__all__ = ["Quantized"]


class Quantized(nn.Module):
    """A network in integers over ``[T, batch, ...]``, as :func:`hibana.quantize` returns it.

        forward(x) = output_scale * net(clamp(round(x / input_scale), low, high))

    All numbers in `net` are integers, and `dtype` holds each exactly. The result of a sum therefore does not
    depend on its order, and the network spikes bit for bit as the program in C does.
    """

    def __init__(
        self, net: nn.Module, input_scale: float, input_range: tuple[int, int], output_scale: float, bits: int
    ) -> None:
        super().__init__()
        self.net = net
        self.input_scale, self.input_range = input_scale, input_range
        self.output_scale, self.bits = output_scale, bits
        self.steps = 0
        """The number of steps within which no number can overflow; 0 if it is not proved."""
        self.dtype = torch.float64
        """The dtype of all numbers in `net`."""

    def integer_input(self, inputs: Tensor) -> Tensor:
        """``clamp(round(x / input_scale), low, high)`` of ``[T, ...]``, with the gradient of the quotient."""
        if is_constant_over_time(inputs):
            first_step = self.integer_input(inputs[:1])
            return first_step.expand(len(inputs), *first_step.shape[1:])
        real = inputs.double() / self.input_scale
        integers = real.detach().round().clamp(*self.input_range)
        return with_gradient(integers, real, 1.0).to(self.dtype)

    whole_input = integer_input  # deprecated name, for one release

    def forward(self, inputs: Tensor) -> Tensor:
        """The output in the units of the float network, in the dtype of `inputs`."""
        if len(inputs) > self.steps > 0:
            raise ValueError(
                f"inputs must have at most the {self.steps} steps within which nothing overflows, "
                f"got {len(inputs)}"
            )
        outputs: Tensor = self.net(self.integer_input(inputs))
        return (outputs.double() * self.output_scale).to(inputs.dtype)
