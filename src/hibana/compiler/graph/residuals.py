"""Chooses the residuals of a step: the values that its backward reads, instead of recomputing them.

A forward value that the backward uses is kept at every step, or recomputed from residuals of this step and of
the step before. Keeping costs its bits, recomputing an effort in the same unit. The choice is found by local
search, from several starts; small sets are all tried.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import inf

from hibana.compiler.graph.analysis import dependents, evaluation_order
from hibana.compiler.graph.step import Step, Value

DRAW = 4.0
"""The price of drawing a number again, in bits: more than the truth value that is made of it, less than a
number, which is never kept if it is made of draws alone."""

MOST = 1 << 16
"""Values that are visited by a local search, at most; about 200 sets of a step of 300 values."""

FEW = 32
"""Up to as many values, every set of up to :data:`SMALL` is tried as well: 5,489 sets at most."""
SMALL = 3

Kept = tuple[Value, ...]


def cost_in_bits(value: Value, number_bits: int = 32) -> int:
    """The price of keeping `value` for one neuron and step."""
    return 1 if value.boolean else number_bits


def _is_read_once(value: Value) -> bool:
    """Whether `value` can't be recomputed: the input, and products, which are too expensive."""
    return value.is_input or value.is_product


def cheapest_residuals(step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> Kept:
    """The values to keep of each step to compute its gradients `roots`; `needed` is kept anyway."""
    choice = Choice(step, roots, needed)
    kept = min(map(choice.improved, choice.starts()), key=choice.price)
    few = choice.small_set()
    if few is not None and not (
        choice.price(kept) < choice.price(few) and choice.bits(kept) <= choice.bits(few)
    ):
        kept = few
    return (*needed, *(value for value in sorted(kept, key=cost_in_bits) if value not in needed))


class Choice:
    """The values that may be kept for the gradients `roots` of a step, and the price of keeping some."""

    def __init__(self, step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> None:
        self.nexts = step.nexts
        self.needed = frozenset(needed)
        self.roots = _used(roots)
        now = evaluation_order(self.roots, ())
        used = {*now, *evaluation_order(self._sources(now), ())}
        drawn = _drawn(used)
        last_first = reversed(evaluation_order([*step.nexts, *roots], ()))
        self.values = [v for v in last_first if v in used and v not in drawn and self._may_be_kept(v)]

    def _may_be_kept(self, value: Value) -> bool:
        """Whether `value` is neither available anyway nor a previous state that the step changes."""
        return not value.is_available and (not value.is_previous or value in self.nexts)

    def _sources(self, values: Iterable[Value]) -> list[Value]:
        """The states after the step before that the previous states in `values` are."""
        indices = sorted({int(v.data) for v in values if v.is_previous})
        return [self.nexts[i] for i in indices]

    def price(self, kept: Kept) -> float:
        """Bits kept, plus the effort of recomputing the rest; infinite if impossible."""
        known = self.needed.union(kept)
        now = [v for v in evaluation_order(self.roots, known) if not v.is_available]
        earlier = evaluation_order(self._sources(now), known)
        if any(map(_is_read_once, now)) or any(v.is_previous or _is_read_once(v) for v in earlier):
            return inf
        return self.bits(kept) + sum(map(_effort, (*now, *earlier)))

    def bits(self, kept: Iterable[Value]) -> int:
        """The price of `kept` besides what is needed anyway; the input is not written, which saves one."""
        price = sum(cost_in_bits(value) for value in kept if value not in self.needed)
        return price - any(value.is_input and value not in self.needed for value in kept)

    def starts(self) -> Iterator[Kept]:
        """Sets from which everything can be computed: the states, the values used, and all values."""
        for some in (self.nexts, [*self.roots, *self.nexts], [v for v in self.values if v.boolean]):
            yield tuple(v for v in self.values if v in some or _is_read_once(v))

    def improved(self, kept: Kept) -> Kept:
        """`kept` with values left out, replaced or added, as long as that lowers the price."""
        least, left = self.price(kept), MOST
        while True:
            for other in self._neighbours(kept):
                left -= len(self.values)
                if self.bits(other) < least and (price := self.price(other)) < least:
                    kept, least = other, price
                    break
                if left < 0:
                    return kept
            else:
                return kept

    def _neighbours(self, kept: Kept) -> Iterator[Kept]:
        for value in sorted(kept, key=cost_in_bits, reverse=True):
            yield tuple(v for v in kept if v is not value)
        others = [value for value in self.values if value not in kept]
        for value in others:
            yield (*kept, value)
        for new in others:
            for value in kept:
                yield tuple(new if v is value else v for v in kept)

    def small_set(self) -> Kept | None:
        """The cheapest set of at most :data:`SMALL` values, by exhaustive search."""
        values = sorted(self.values, key=cost_in_bits)
        if len(values) > FEW:
            return None
        best: Kept | None = None
        least = inf
        for kept in (kept for size in range(SMALL + 1) for kept in combinations(values, size)):
            if self.bits(kept) < least and (price := self.price(kept)) < least:
                best, least = kept, price
        return best


def _used(roots: Sequence[Value]) -> list[Value]:
    """The forward values that `roots` are, or that the backward uses."""
    everything = evaluation_order(roots, ())
    behind = dependents(everything, (value for value in everything if value.is_gradient))
    ends = [*roots, *(a for v in everything if v in behind for a in v.args)]
    return list(dict.fromkeys(v for v in ends if v not in behind and not v.is_available))


def _drawn(values: Iterable[Value]) -> set[Value]:
    """Those of `values` that are numbers made of draws alone."""
    found: set[Value] = set()
    for value in evaluation_order(values, ()):
        drawn = any(a in found for a in value.args)
        drawn &= all(a in found or a.is_available for a in value.args)
        if value.is_draw or (drawn and not value.boolean):
            found.add(value)
    return found


def _effort(value: Value) -> float:
    """The price of recomputing `value`, in bits."""
    if not value.args:
        return DRAW if value.is_draw else 0.0
    return 0.1 if value.operation is None else value.operation.effort
