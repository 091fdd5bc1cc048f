"""Chooses the residuals of a step, and what is recomputed from them, by a minimum cut.

A forward value that the backward uses is kept at every step, or recomputed from what is kept. Keeping costs
its bits, recomputing an effort in the same unit. In a flow network the input and the states before the step
are sources, the values that the backward uses are sinks, and keeping a value cuts it: the cheapest choice is
a minimum cut.

The network has two copies of the step, since the states before a step can come from the residuals of the step
before: the states after the second copy feed the first. A value that is cut in both copies costs once. No
single cut can express that, so the price is split between the copies and moved, in a few rounds, to where it
is not paid already (a Lagrangian relaxation); the best round counts.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import inf

from hibana.compiler.graph.analysis import dependents, evaluated
from hibana.compiler.graph.cut import INFINITE, Network
from hibana.compiler.graph.step import Step, Value

DRAW = 4.0
"""The price of drawing a number again, in bits: more than the truth value that is made of it, less than a
number, which is never kept if it is made of draws alone."""

ROUNDS = 8
"""Maximum rounds."""
MOST = 1600
"""Maximum values that are cut in all rounds together, after the first."""

FEW = 32
"""Up to as many values, every set of up to :data:`SMALL` is tried as well: 5,489 sets at most."""
SMALL = 3

UNIT = 1 << 20
"""The price of a bit in integers: fine enough for the least effort, and for the order to break a tie."""


def cost_in_bits(value: Value, number_bits: int = 32) -> int:
    """The price of keeping `value` for one neuron and step."""
    return 1 if value.boolean else number_bits


def _is_read_once(value: Value) -> bool:
    """Whether `value` can't be recomputed: the input, and products, which are too expensive."""
    return value.is_input or value.is_product


def cheapest_residuals(step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> tuple[Value, ...]:
    """What to keep of each step to compute its gradients `roots`; `needed` is kept anyway."""
    kept = _cheapest(step, roots, needed)
    return (*needed, *(value for value in kept if value not in needed))


def _cheapest(step: Step, roots: Sequence[Value], needed: Sequence[Value]) -> tuple[Value, ...]:
    split = _Split(step, roots, needed)
    found = min(split.rounds(), key=split.price)
    for value in found:  # what is kept for one copy may make needless what was kept for the other
        without = tuple(v for v in found if v is not value)
        if split.price(without) < split.price(found):
            found = without
    found = tuple(sorted(found, key=cost_in_bits))
    few = split.small_set()
    if few is None or (split.price(found) < split.price(few) and split.bits(found) <= split.bits(few)):
        return found
    return few


class _Split:
    """Two copies of a step's values, of the step itself and of the one before, and how prices are split."""

    def __init__(self, step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> None:
        self.nexts = step.nexts
        self.needed = frozenset(needed)
        self.roots = _used(roots)
        self.now = _wanted(self.roots)
        self.earlier = _wanted(self._sources(self.now))
        last_first = reversed([v for v in evaluated([*step.nexts, *roots], ()) if not v.is_available])
        self.values = [v for v in last_first if v in self.now or v in self.earlier]
        self.passed_on = frozenset(v for v in step.nexts if v.is_previous)
        """States before the step that are states after it, unchanged."""
        both = self.now & self.earlier
        self.drawn = _drawn(self.values)
        self.share = {v: 0.5 if v in both else float(v in self.now) for v in self.values}
        """The part of a value's price that the step itself pays; the rest, the step before."""

    def _sources(self, values: Iterable[Value]) -> list[Value]:
        """The states after the step before that the previous states in `values` are."""
        indices = sorted({int(v.data) for v in values if v.is_previous})
        return [self.nexts[i] for i in indices]

    def rounds(self) -> Iterator[tuple[Value, ...]]:
        """The choice of each round."""
        for i in range(max(1, min(ROUNDS, MOST // (1 + len(self.values))))):
            now, earlier = self._kept()
            yield tuple(v for v in self.values if v in now or v in earlier)
            unequal = [v for v in now ^ earlier if v in self.now and v in self.earlier]
            if not unequal:
                return
            for value in unequal:  # it costs more where it is kept, and less where it would then be free
                self.share[value] += (float(value in now) - self.share[value]) / (1 + i)

    def price(self, kept: tuple[Value, ...]) -> float:
        """Bits kept, plus the effort of recomputing the rest; infinite if impossible."""
        known = self.needed.union(kept)
        now = [v for v in evaluated(self.roots, known) if not v.is_available]
        earlier = evaluated(self._sources(now), known)
        if any(map(_is_read_once, now)) or any(v.is_previous or _is_read_once(v) for v in earlier):
            return inf
        return self.bits(kept) + sum(map(_effort, (*now, *earlier)))

    def bits(self, kept: Iterable[Value]) -> int:
        """The price of `kept` besides what is needed anyway; the input is not written, which saves one."""
        price = sum(cost_in_bits(value) for value in kept if value not in self.needed)
        return price - any(value.is_input and value not in self.needed for value in kept)

    def small_set(self) -> tuple[Value, ...] | None:
        """The cheapest set of at most :data:`SMALL` values, by exhaustive search."""
        values = sorted((v for v in self.values if self._may_be_kept(v)), key=cost_in_bits)
        if len(values) > FEW:
            return None
        best: tuple[Value, ...] | None = None
        least = inf
        for kept in (kept for size in range(SMALL + 1) for kept in combinations(values, size)):
            if self.bits(kept) < least and (price := self.price(kept)) < least:
                best, least = kept, price
        return best

    def _kept(self) -> tuple[set[Value], set[Value]]:
        """The values that a minimum cut keeps for the step itself, and for the step before."""
        places = {v: 2 + 4 * i for i, v in enumerate(self.values)}
        source, sink = 0, 1
        network = Network(2 + 4 * len(places))
        for order, (value, at) in enumerate(places.items()):
            price = self.bits([value]) * UNIT + order  # of one price, what is computed last is kept
            effort = int(_effort(value) * UNIT)
            mine = int(price * self.share[value])
            if value in self.now:
                if _is_read_once(value):
                    network.add(source, at, INFINITE)
                elif value.is_previous:
                    before = self.nexts[int(value.data)]
                    if before in places:
                        network.add(places[before] + 3, at, INFINITE)
                network.add(source, at, effort)
                network.add(at, at + 1, mine if self._may_be_kept(value) else INFINITE)
                for argument in value.args:
                    if argument in places:
                        network.add(places[argument] + 1, at, INFINITE)
            if value in self.earlier:
                if value.is_previous or _is_read_once(value):
                    network.add(source, at + 2, INFINITE)
                network.add(source, at + 2, effort)
                network.add(at + 2, at + 3, price - mine if self._may_be_kept(value) else INFINITE)
                for argument in value.args:
                    if argument in places:
                        network.add(places[argument] + 3, at + 2, INFINITE)
        for value in self.roots:
            network.add(places[value] + 1, sink, INFINITE)
        near = network.source_side(source, sink)
        now, earlier = (
            {v for v, at in places.items() if near[at + copy] and not near[at + copy + 1]} for copy in (0, 2)
        )
        recomputed = evaluated(self.roots, now)  # what is free may be cut where nobody wants it
        sources = self._sources(recomputed)
        return now & _taken(recomputed, self.roots), earlier & _taken(evaluated(sources, earlier), sources)

    def _may_be_kept(self, value: Value) -> bool:
        """Whether `value` may be a residual: no draw, and no previous state that the step changes."""
        return value not in self.drawn and (not value.is_previous or value in self.passed_on)


def _used(roots: Sequence[Value]) -> list[Value]:
    """The forward values that `roots` are, or that the backward uses."""
    everything = evaluated(roots, ())
    behind = dependents(everything, (value for value in everything if value.is_gradient))
    ends = [*roots, *(a for v in everything if v in behind for a in v.args)]
    return list(dict.fromkeys(v for v in ends if v not in behind and not v.is_available))


def _drawn(values: Iterable[Value]) -> set[Value]:
    """Those of `values` that are numbers made of draws alone."""
    found: set[Value] = set()
    for value in evaluated(values, ()):
        drawn = any(a in found for a in value.args)
        drawn &= all(a in found or a.is_available for a in value.args)
        if value.is_draw or (drawn and not value.boolean):
            found.add(value)
    return found


def _wanted(roots: Iterable[Value]) -> set[Value]:
    return {v for v in evaluated(roots, ()) if not v.is_available}


def _taken(values: Iterable[Value], roots: Iterable[Value]) -> set[Value]:
    """`roots`, and the arguments of `values`."""
    return {*roots, *(argument for value in values for argument in value.args)}


def _effort(value: Value) -> float:
    """The price of recomputing `value`, in bits."""
    if not value.args:
        return DRAW if value.is_draw else 0.0
    return 0.1 if value.operation is None else value.operation.effort
