"""What is left of a potential in whole numbers: a shift, or a product that is rounded."""

import math

from torch import Tensor, nn

from hibana.network.straight import doubles, rounded_down, straight_through

__all__ = ["FRACTION", "Leak"]

FRACTION = 15
"""Bits after the point of a leak that is no shift."""


class Leak(nn.Module):
    """What is left of a potential after a step, rounded to the nearest whole number.

        leak(v) = v                                  tau infinite
                  v - floor(v / 2^k + 1/2)           tau = 2^k
                  floor(v m / 2^15 + 1/2)            else, m = round(2^15 (1 - 1/tau))

    A rounded leak of a small number does not go on to zero: it rests where half a unit is left to lose.
    The gradient is that of ``v (1 - 1/tau)``, with respect to `tau` too.
    """

    factor: float | Tensor | None

    def __init__(self, tau: Tensor | float) -> None:
        super().__init__()
        of = doubles(tau)
        number = float(of.detach())
        self.shift: int | None = None
        self.factor = None
        """What is lost of a potential, of a shift; else what is left; a tensor where tau is learned."""
        if math.isinf(number):
            return
        power = math.log2(number)
        if power == int(power):
            self.shift = int(power)
            lost = 1 / of
            self._let("factor", straight_through(lost, lost.detach()))
        else:
            left = 1 - 1 / of
            self._let("factor", straight_through(left, (left.detach() * 2**FRACTION).round() / 2**FRACTION))

    def forward(self, v: Tensor) -> Tensor:
        """What is left of `v`."""
        if self.factor is None:
            return v
        product = rounded_down(v * self.factor + 0.5)
        return product if self.shift is None else v - product

    def _let(self, name: str, value: Tensor) -> None:
        if value.requires_grad:
            delattr(self, name)
            self.register_buffer(name, value)
        else:
            setattr(self, name, float(value))

    def __repr__(self) -> str:
        if self.factor is None:
            return "v"
        if self.shift is not None:
            return f"v - (v >> {self.shift})"
        return f"v * {round(float(self.factor) * 2**FRACTION)} >> {FRACTION}"
