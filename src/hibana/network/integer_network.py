"""A network that computes in integers, as a module, and rounding that passes gradients on.

Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic neurons
for conditional computation*: the straight-through estimator.
"""

import torch
from torch import Tensor, nn

from hibana.spikes.checks import is_constant_over_time

__all__ = ["Quantized", "integer_input", "straight_through"]


class _StraightThrough(torch.autograd.Function):
    """Returns `integer`; its gradient goes to `real` unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(real: Tensor, integer: Tensor) -> Tensor:
        """A copy of `integer`."""
        return integer.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Saves no tensor."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        """`gradient` for `real`, and no gradient for `integer`."""
        return gradient, None


def straight_through(real: Tensor, integer: Tensor) -> Tensor:
    """`integer`, with the gradient of `real`."""
    result: Tensor = _StraightThrough.apply(real, integer)  # type: ignore[no-untyped-call] # torch leaves it so
    return result


def integer_input(inputs: Tensor, scale: float, range_: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``clamp(round(x / scale), low, high)`` of ``[T, ...]``, with the gradient of ``x / scale``."""
    if is_constant_over_time(inputs):
        first_step = integer_input(inputs[:1], scale, range_, dtype)
        return first_step.expand(len(inputs), *first_step.shape[1:])
    real = inputs.double() / scale
    return straight_through(real, real.detach().round().clamp(*range_)).to(dtype)


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
        """`inputs` in units of `input_scale`, rounded to integers and clamped to `input_range`."""
        return integer_input(inputs, self.input_scale, self.input_range, self.dtype)

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
