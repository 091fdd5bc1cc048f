"""Chooses the residuals of a step, and what is recomputed from them, by a minimum cut.

A forward value that the backward uses is kept at every step, or recomputed from what is kept. Keeping costs
its bits, recomputing an effort in the same measure. Picture every value as a pipe from its arguments, with
the input and the states before the step as springs: what is kept closes pipes, and nothing may flow to
what the backward uses. The cheapest way to close them is a minimum cut.

The graph is there twice. The state before a step is the state after the step before, where what was kept is
at hand as well: the second copy is the step before, its own states before are out of reach, and its states
after feed the first copy. A value that both copies close is paid for once. No single cut can say that, so
the price is split between the copies and moved, in a few rounds, to where it isn't paid already (a
Lagrangian relaxation); the best of all rounds counts.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import combinations
from math import inf

from hibana.compiler.graph.cut import INFINITE, Network
from hibana.compiler.graph.ops import OPERATIONS
from hibana.compiler.graph.step import Step, Value

__all__ = ["cheapest_residuals", "cost_in_bits", "evaluated"]

FREE = frozenset({"constant", "number", "parameter", "gradient"})
"""Leaves that are at hand whenever they are wanted."""

ONCE = ("input", "product")
"""What is not to be had again unless it is kept: the input, and products, which are too dear."""

ROUNDS = 8
"""How often the price is split anew at most."""
MOST = 1600
"""How many values are cut in all rounds together, if one round cuts fewer."""

FEW = 32
"""Among so many values every set of up to :data:`SMALL` is tried as well: 5,489 sets at most."""
SMALL = 3

UNIT = 1 << 20
"""What a bit costs in whole numbers: fine enough for the least effort, and for order to settle a tie."""


def cost_in_bits(value: Value, number_bits: int = 32) -> int:
    """What keeping `value` at one step of one neuron costs."""
    return 1 if value.boolean else number_bits


def evaluated(roots: Iterable[Value], known: Container[Value]) -> list[Value]:
    """What must be evaluated or read for `roots` when `known` are at hand; each after its arguments."""
    order: dict[Value, None] = {}
    for root in roots:
        waiting = [root]
        while waiting:
            value = waiting[-1]
            if value in order or value in known:
                waiting.pop()
                continue
            missing = [a for a in value.args if a not in order and a not in known]
            if missing:
                waiting += reversed(missing)
            else:
                order[value] = None
                waiting.pop()
    return list(order)


def cheapest_residuals(step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> tuple[Value, ...]:
    """What to keep of each step, so that its gradients `roots` can be computed; `needed` is kept anyway."""
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
    """A step's values twice, the step itself and the one before, and the price of each split between them."""

    def __init__(self, step: Step, roots: Sequence[Value], needed: Sequence[Value] = ()) -> None:
        self.nexts = step.nexts
        self.needed = frozenset(needed)
        self.roots = _used(roots)
        self.now = _wanted(self.roots)
        self.earlier = _wanted(self._sources(self.now))
        last_first = reversed([v for v in evaluated([*step.nexts, *roots], ()) if v.op not in FREE])
        self.values = [v for v in last_first if v in self.now or v in self.earlier]
        self.passed_on = frozenset(v for v in step.nexts if v.op == "previous")
        """States before the step that are states after it, unchanged."""
        both = self.now & self.earlier
        self.share = {v: 0.5 if v in both else float(v in self.now) for v in self.values}
        """The part of its price that keeping a value costs the step itself; the rest, the step before."""

    def _sources(self, values: Iterable[Value]) -> list[Value]:
        """The states after the step before that the states before it in `values` are."""
        indices = sorted({int(v.data) for v in values if v.op == "previous"})
        return [self.nexts[i] for i in indices]

    def rounds(self) -> Iterator[tuple[Value, ...]]:
        """What to keep, by one split of the prices after another."""
        for i in range(max(1, min(ROUNDS, MOST // (1 + len(self.values))))):
            now, earlier = self._kept()
            yield tuple(v for v in self.values if v in now or v in earlier)
            unequal = [v for v in now ^ earlier if v in self.now and v in self.earlier]
            if not unequal:
                return
            for value in unequal:  # it costs more where it is kept, and less where it would then be free
                self.share[value] += (float(value in now) - self.share[value]) / (1 + i)

    def price(self, kept: tuple[Value, ...]) -> float:
        """Bits kept, plus what recomputing the rest costs in the same measure; infinite if impossible."""
        known = self.needed.union(kept)
        now = [v for v in evaluated(self.roots, known) if v.op not in FREE]
        earlier = evaluated(self._sources(now), known)
        if any(v.op in ONCE for v in now) or any(v.op in ("previous", *ONCE) for v in earlier):
            return inf
        return self.bits(kept) + sum(map(_effort, (*now, *earlier)))

    def bits(self, kept: Iterable[Value]) -> int:
        """What keeping `kept` costs besides what is needed anyway; the input is there, and not written."""
        price = sum(cost_in_bits(value) for value in kept if value not in self.needed)
        return price - any(value.op == "input" and value not in self.needed for value in kept)

    def small_set(self) -> tuple[Value, ...] | None:
        """The cheapest set of at most :data:`SMALL` values, if trying them all finds one."""
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
        """What the cheapest cut keeps for the step itself, and for the step before."""
        places = {v: 2 + 4 * i for i, v in enumerate(self.values)}
        source, sink = 0, 1
        network = Network(2 + 4 * len(places))
        for order, (value, at) in enumerate(places.items()):
            price = self.bits([value]) * UNIT + order  # of one price, what is computed last is kept
            effort = int(_effort(value) * UNIT)
            mine = int(price * self.share[value])
            if value in self.now:
                if value.op in ONCE:
                    network.add(source, at, INFINITE)
                elif value.op == "previous":
                    before = self.nexts[int(value.data)]
                    if before in places:
                        network.add(places[before] + 3, at, INFINITE)
                network.add(source, at, effort)
                network.add(at, at + 1, mine if self._may_be_kept(value) else INFINITE)
                for argument in value.args:
                    if argument in places:
                        network.add(places[argument] + 1, at, INFINITE)
            if value in self.earlier:
                if value.op in ("previous", *ONCE):
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
        return value.op != "previous" or value in self.passed_on


def _used(roots: Sequence[Value]) -> list[Value]:
    """The values of the forward that `roots` are, or that something of the backward takes."""
    everything = evaluated(roots, ())
    behind: set[Value] = set()
    for value in everything:
        if value.op == "gradient" or any(argument in behind for argument in value.args):
            behind.add(value)
    ends = [*roots, *(a for v in everything if v in behind for a in v.args)]
    return list(dict.fromkeys(v for v in ends if v not in behind and v.op not in FREE))


def _wanted(roots: Iterable[Value]) -> set[Value]:
    return {v for v in evaluated(roots, ()) if v.op not in FREE}


def _taken(values: Iterable[Value], roots: Iterable[Value]) -> set[Value]:
    """`roots`, and what is taken as an argument by one of `values`."""
    return {*roots, *(argument for value in values for argument in value.args)}


def _effort(value: Value) -> float:
    """What recomputing `value` costs, in bits kept."""
    if not value.args:
        return 0.0
    row = OPERATIONS.get(value.op)
    return 0.1 if row is None else row.effort
