"""What the products of a layer should take, densely and by events, and which of them is chosen.

A layer in mode ``"auto"`` asks here, with what its module ``reckoned`` says of its sizes. Nothing here knows
a layer.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["ALL", "DENSITIES", "Choice", "Costs", "Product", "choice", "chosen"]

DENSITIES = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
"""Of bits that are set, at which events are reckoned."""
MARGIN = 0.75
"""Events are chosen where they should take less than this part of the dense product's time."""
ELSEWHERE_ZERO = 0.8
"""The same for an input's gradient computed on the support."""
LOOK = 3e-3
"""Seconds of torch's beside which it does not count that an input is looked at."""
SAVING = 5
"""How many times what a call takes beside its kernels few spikes must save, too, for an input to be looked at
that is left to torch if it has many."""
APART = 2e-4
""":attr:`Costs.apart` where numbers were fitted."""
OVERHEAD = 4e-5
""":attr:`Product.call` there."""


@dataclass(frozen=True)
class Product:
    """Seconds that one product takes."""

    dense: float
    events: Callable[[float], float]
    """At one of :data:`DENSITIES`; what it takes to know it is measured when it is first asked."""
    call: float = OVERHEAD
    """Of events, before and after their kernel, more than torch's."""
    shared: Callable[[float], float] = lambda density: 0.0
    """Of events, what several planes of bits take together, and not each."""

    def ratio(self, density: float, planes: int = 1) -> float:
        """Time of events to the dense product's at this `density`."""
        return self.seconds(density, planes) / self.dense

    def seconds(self, density: float, planes: int = 1) -> float:
        """Of events at this `density`."""
        taken = self._of_one_plane(density)
        if planes == 1:
            return taken + self.call
        shared = min(taken, self.shared(density))
        return shared + planes * (taken - shared) + self.call

    def _of_one_plane(self, density: float) -> float:
        """Of one plane, on lines between the densities that are reckoned."""
        right = min(max(1, bisect_left(DENSITIES, density)), len(DENSITIES) - 1)
        low, high = DENSITIES[right - 1], DENSITIES[right]
        part = (density - low) / (high - low)
        taken = self.events(low) * (1 - part) + self.events(high) * part
        return max(0.0, taken)


@dataclass(frozen=True)
class Costs:
    """What a layer takes."""

    forward: Product
    weights: Product
    """The gradient of the weights."""
    input: Product
    """The gradient of the input, over the density of the support."""
    scan: float
    """Seconds to make bits of numbers."""
    apart: float = APART
    """Seconds more that it takes to go forward one way and the other for the weights' gradient."""

    def sooner(self, density: float, learning: bool) -> float:
        """Seconds of the sooner way, with the weights' gradient if they are `learning`."""
        products = (self.forward, self.weights) if learning else (self.forward,)
        return sum(min(product.dense, product.seconds(density)) for product in products)

    def worth_looking(self, learning: bool) -> bool:
        """Whether events can pay at some density, and looking at the input costs little beside torch.

        Where they pay at every density, an input that turns out to be no spikes is all that is lost.
        """
        return self._worth_for_both if learning else self._worth_forward

    @cached_property
    def choices(self) -> "dict[tuple[float, int, bool, bool], Choice]":
        """What :func:`chosen` said."""
        return {}

    @cached_property
    def _worth_forward(self) -> bool:
        return self._worth(self.forward.dense, False)

    @cached_property
    def _worth_for_both(self) -> bool:
        return self._worth(self.forward.dense + self.weights.dense, True)

    def _worth(self, seconds: float, learning: bool) -> bool:
        """Whether it is beside so many `seconds` of torch's; what no longer matters is not reckoned."""
        enough = any if seconds > LOOK and self._saves(seconds, learning) else all
        return enough(chosen(self, density, 1, True, learning).any for density in DENSITIES)

    def _saves(self, seconds: float, learning: bool) -> bool:
        """Whether few spikes save enough of so many `seconds`."""
        saved = seconds - self.scan - self.sooner(DENSITIES[0], learning)
        return saved > SAVING * self.forward.call


class Choice(NamedTuple):
    """Which products are done by events."""

    forward: bool = True
    weights: bool | None = True
    """Nothing, where weights get no gradient."""
    costs: Costs | None = None
    said: str = ""
    """What they should take, for people."""

    @property
    def any(self) -> bool:
        """Whether any product of the call itself is done by events."""
        return self.forward or bool(self.weights)

    def refused(self, density: float) -> str:
        """Why none is, for people."""
        return f"{density:.0%} of the input spiked; events would take {self.said}"

    def restricted(self, density: float, most: float = 1.0) -> bool:
        """Whether the input's gradient is computed on this density of it only; unreckoned, up to `most`."""
        if self.costs is None:
            return density <= most
        return self.costs.input.ratio(density) < ELSEWHERE_ZERO


ALL = Choice()
"""Everything by events."""


def choice(costs: Costs | None, density: float, planes: int, learns: bool) -> Choice:
    """:func:`chosen` where bits are there; everything by events where nothing is reckoned."""
    return ALL if costs is None else chosen(costs, density, planes, False, learns)


def chosen(costs: Costs, density: float, planes: int, scanned: bool, learns: bool) -> Choice:
    """What to do by events with so many planes of bits, which have to be `scanned` for or are known.

    Args:
        costs: of the sizes.
        density: of the bits that are set.
        planes: of the input.
        scanned: whether bits have to be made of numbers.
        learns: whether the weights get a gradient.

    What is reckoned is known to a fifth, so a density is taken to two digits, and all is remembered of it.
    """
    key = float(f"{density:.2g}"), planes, scanned, learns
    found = costs.choices.get(key)
    if found is None:
        found = costs.choices[key] = _chosen(costs, *key)
    return found


def _chosen(costs: Costs, density: float, planes: int, scanned: bool, learns: bool) -> Choice:
    forward = costs.forward.seconds(density, planes) + scanned * costs.scan
    said = f"forward {forward / costs.forward.dense:.2f}"
    if learns:
        weights = costs.weights.seconds(density, planes)
        said += f" and weights' gradient {weights / costs.weights.dense:.2f}"
        pays: tuple[bool, bool | None] = _pay(costs, forward, weights)
    else:
        pays = forward < MARGIN * costs.forward.dense, None
    return Choice(*pays, costs, f"{said} of the dense time")


def _pay(costs: Costs, forward: float, weights: float) -> tuple[bool, bool]:
    """Which of the two by events, which take so many seconds so, save most of the dense time."""
    ways = [
        (True, True, forward + weights, costs.forward.dense + costs.weights.dense),
        (True, False, forward + costs.apart, costs.forward.dense),
        (False, True, weights + costs.apart, costs.weights.dense),
    ]
    paying = [(dense - events, way) for *way, events, dense in ways if events < MARGIN * dense]
    if not paying:
        return False, False
    _, (first, second) = max(paying)
    return bool(first), bool(second)
